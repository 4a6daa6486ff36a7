"""Tensors on secret shares at the three nodes of a committee: torch tensors whose data nobody holds.

A `SharedTensor` has a shape, a dtype and a place in autograd here. Each operation on it becomes one command for all three nodes,
caught below autograd as for remote tensors, and returns at once; nothing waits until `reveal()`. What nodes cannot do on shares
is refused at the line that asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

import torch

from grid.client.chain import BITS, PLACED, FixedPrecision, Member, Shares, at_committee, outranked, shown
from grid.client.dispatch import NEEDS_VALUES, USE_GET, Dispatcher, Handle
from grid.client.fixed_precision import adopted, check_bits
from grid.client.rewriting import TWINS, VIEWS, batch_norm, mark, rewritten, trains
from grid.client.shapes import CPU, Meta
from grid.client.tensors import RemoteTensor
from grid.display import html
from grid.errors import InvalidRequest


class SharedTensor(RemoteTensor):
    """A torch tensor on shares. Made by `committee.share`, `x.share(committee)`, and operations on other shared tensors.

    Floating-point values are fixed point with 18 fraction bits: a resolution of 4e-6, and products below 6.7e7 in size.
    """

    _level: FixedPrecision | Shares | None = None

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if len(types) > 1:
            if outranked(PLACED, types):
                return NotImplemented
            raise InvalidRequest(f"{func} has an operand at a node and one on shares: share the first, x.share(committee)")
        kwargs = kwargs or {}
        twin = TWINS.get(func)
        if twin is not None:
            target = kwargs.pop("out") if "out" in kwargs else args[0]
            return rewritten(target, lambda: _dispatch(twin, args, kwargs), str(func))
        if trains(func, args):
            return batch_norm(_dispatch, args)
        made = _dispatch(func, args, kwargs)
        if func in VIEWS and isinstance(args[0], SharedTensor):
            mark(args[0], made)
        return made

    def reveal(self, *, to: Any = None, timeout: float | None = None) -> Any:
        """The value, to this client alone, if every owner's rules let it go; detached from autograd.

        With `to`, a node or its name, the value opens to that node alone. This gives a remote tensor there, and the node's
        owner a file (`grid results`), if rows of that node are behind the value.

        In an asynchronous client, an awaitable of that. `timeout` in seconds. Raises `ReleaseDenied`, `QuorumLost` naming a node
        that is gone, and the error of the operation that the value failed by.
        """
        outbox: Any = self._handle.outbox  # a committee
        return outbox.wait(outbox.read(self, timeout) if to is None else outbox.open_to(self, to, timeout))

    def _needs_value(self, what: str, write: str) -> NoReturn:
        write = write.replace("get()", "reveal()")
        raise InvalidRequest(
            f"{what} needs the value, which is on shares: nobody has it. Write {write}; reveal() opens it to this client, if its"
            " owners' rules allow"
        )

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise InvalidRequest("a tensor on shares cannot be pickled or saved: nobody has its value. Save x.reveal()")

    @property
    def child(self) -> FixedPrecision | Shares:
        """The level below: `FixedPrecision` over `Shares`; `Shares` for whole numbers and truth values."""
        level, handle = self._level, self._handle
        if level is None or (level.of if isinstance(level, FixedPrecision) else level._handle) is not handle:
            shares = Shares(handle, self.shape)
            level = FixedPrecision(shares, handle) if self.dtype.is_floating_point else shares
            self._level = level.under(self)
        return level

    def get(self, *, timeout: float | None = None) -> Any:
        """The value, opened as by `reveal`, as a fixed-precision tensor here: `x.get().float_precision()` is what `reveal` gives.

        Whole numbers and truth values come as ordinary tensors. In an asynchronous client, an awaitable.
        """
        outbox: Any = self._handle.outbox
        return outbox.wait(self._opened(timeout))

    async def _opened(self, timeout_s: float | None) -> torch.Tensor:
        outbox: Any = self._handle.outbox
        words = await outbox.words(self, timeout_s)
        return adopted(words, self.dtype) if self.dtype.is_floating_point else words.to(self.dtype)

    def fix_precision(self, bits: int = BITS, **words: Any) -> Any:
        """It is in fixed precision already."""
        check_bits(bits, words)
        return self

    fix_prec = fix_precision

    def float_precision(self) -> NoReturn:
        """On shares there is fixed precision alone."""
        raise InvalidRequest("on shares there is fixed precision alone: open the value first, x.get().float_precision()")

    float_prec = float_precision

    def move(self, *to: Any, timeout: float | None = None, **words: Any) -> Any:
        """A new tensor with this value on shares at another committee, or at three nodes or their names; this one stays.

        Nobody learns the value: each of the three nodes deals its parts on to the others. For values that depend on this
        client's own inputs alone: `ReleaseDenied` where rows of a dataset, or another client's value, are behind it, as those
        were shared with the nodes of this committee and no others. Detached from autograd. In an asynchronous client, an
        awaitable.
        """
        if len(to) == 1 and isinstance(to[0], str | Member):
            raise InvalidRequest(
                "a value on shares moves to a committee, or to three nodes, and not to one: x.reveal(to=node) opens it to a node"
            )
        outbox: Any = self._handle.outbox
        return at_committee(to, words, outbox.sites[0], lambda found: outbox.wait(outbox.move(self, found, timeout)))

    def share(self, *places: Any, **words: Any) -> NoReturn:
        """It is on shares already."""
        raise InvalidRequest("the tensor is on shares already; x.move(committee) puts it on shares at another one, too")

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Never shows values: nobody has them."""
        kind = "Parameter containing: " if isinstance(self, torch.nn.Parameter) else ""
        return f"{kind}SharedTensor({', '.join(f'{name}={value}' for name, value in self._facts())})"

    def __str__(self) -> str:
        return shown(self)

    def _repr_html_(self) -> str:
        note = "On secret shares; no node has the value. reveal() opens it to this client, if its owners' rules let it go."
        dtype = str(self.dtype).removeprefix("torch.")
        return html(f"{tuple(self.shape)} {dtype}", f"shared tensor at {self.location.name}", note=note)


def _needs_values() -> Mapping[Any, str]:
    """As for tensors at a node, but a value on shares is revealed."""
    texts = {func: text.replace(USE_GET, USE_REVEAL).replace("get()", "reveal()") for func, text in NEEDS_VALUES.items()}
    return MappingProxyType(texts)


USE_REVEAL = "x.reveal() opens a value on shares to this client if its owners' rules let it: write x.reveal()"


def wrap(meta: Meta, handle: Handle, offset: int = 0) -> SharedTensor:
    """The shared tensor of geometry `meta` that stands for `handle`."""
    tensor: SharedTensor = torch.Tensor._make_wrapper_subclass(
        SharedTensor, meta.shape, strides=meta.stride, storage_offset=offset, dtype=meta.dtype, device=CPU
    )
    torch._C._set_throw_on_mutable_data_ptr(tensor)  # else torch's own C functions would hand out a null pointer
    tensor._handle = handle
    tensor._meta = meta
    return tensor


_dispatch = Dispatcher(SharedTensor, wrap, _needs_values())
