"""Modules whose parameters and buffers are at a node, or on shares at a committee.

`send_module` gives a new module of the same classes; only its top object gets a class of its own, a subclass of what it was
with `location` and `get` or `reveal`, so `isinstance` holds and `forward` is the user's. Parameters that were one tensor stay one
tensor.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NoReturn

import torch

from grid.client.dispatch import Outbox, Place
from grid.client.fixed_precision import FixedTensor
from grid.client.links import Linked
from grid.client.tensors import RemoteTensor
from grid.display import html
from grid.errors import InvalidRequest

Put = Callable[[torch.Tensor], RemoteTensor]


class _Elsewhere(torch.nn.Module):
    """What modules of both kinds can do beside what they could before. A mixin: never made by itself."""

    _kind: ClassVar[str]
    _fetch: ClassVar[str]
    _where: ClassVar[str]

    @property
    def location(self) -> Place:
        """The node, or the committee, that has the parameters."""
        return _outbox_of(self).place

    def __repr__(self) -> str:
        return f"{super().__repr__()} at {self.location.name!r}"

    def _repr_html_(self) -> str:
        columns = ("parameter or buffer", "shape", "dtype", "learns")
        rows = [
            (name, tuple(one.shape), str(one.dtype).removeprefix("torch."), "yes" if one.requires_grad else "no")
            for name, one in (*self.named_parameters(), *self.named_buffers())
        ]
        return html(type(self).__name__, f"{self._kind} at {self.location.name}", columns=columns, rows=rows)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise InvalidRequest(
            f"a {self._kind} cannot be pickled or saved: its parameters are {self._where} and belong to this session. Use"
            f" {self._fetch} first, or save {self._fetch}.state_dict()"
        )

    # `copy` would ask `__reduce_ex__`, as pickle does, so that copying has to be said here.

    def __copy__(self) -> Any:
        own = getattr(super(), "__copy__", None)
        return own() if own is not None else _rebuilt(self, super().__reduce_ex__(4), lambda part: part)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        own = getattr(super(), "__deepcopy__", None)
        if own is not None:
            return own(memo)
        return _rebuilt(self, super().__reduce_ex__(4), lambda part: copy.deepcopy(part, memo), memo)


class RemoteModule(_Elsewhere):
    """What a module at a node can do besides."""

    _kind = "remote module"
    _fetch = "model.get()"
    _where = "at a node"

    def get(self, *, timeout: float | None = None) -> Any:
        """A new, ordinary module with copies of the parameters and buffers; the remote one stays.

        In an asynchronous client, an awaitable of that. Raises what `RemoteTensor.get` raises, for the first that fails.
        """
        outbox = _outbox_of(self)
        return outbox.wait(_fetched(self, timeout))


class SharedModule(_Elsewhere):
    """What a module on shares can do besides. Its call does one operation after the other; `committee.run(module, x)` all of them
    as one plan."""

    _kind = "shared module"
    _fetch = "model.reveal()"
    _where = "on shares at a committee"

    def reveal(self, *, timeout: float | None = None) -> Any:
        """A new, ordinary module with the parameters and buffers, opened to this client; the shared one stays.

        In an asynchronous client, an awaitable of that. Raises what `SharedTensor.reveal` raises, for the first that fails.
        """
        outbox = _outbox_of(self)
        return outbox.wait(_fetched(self, timeout))

    def get(self, *, timeout: float | None = None) -> Any:
        """What `reveal` gives: modules have no chain."""
        return self.reveal(timeout=timeout)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Values on shares are never written to."""
        raise InvalidRequest(
            "load_state_dict writes into parameters, and shares are never written to: load into a plain module, and share that"
            " (committee.share(module)); model.reveal() gives this one"
        )


def _rebuilt(
    module: torch.nn.Module, reduced: Any, copied: Callable[[Any], Any], memo: dict[int, Any] | None = None
) -> torch.nn.Module:
    """The copy that the `copy` module makes of what `__reduce_ex__` gave. Modules have a state, and no items or setter."""
    make, args, state = reduced[:3]
    made: torch.nn.Module = make(*copied(args))
    if memo is not None:
        memo[id(module)] = made  # before its state, which may lead back to it
    made.__setstate__(copied(state))  # type: ignore[no-untyped-call]
    return made


def send_module(module: torch.nn.Module, put: Put, kind: type[_Elsewhere] = RemoteModule) -> torch.nn.Module:
    """A copy of `module`, of the `kind`, with each parameter and buffer sent by `put`. What was passed stays as it was."""
    if not any(True for _ in _tensors(module)):
        raise InvalidRequest(f"{type(module).__name__} has neither parameters nor buffers to send: use it as it is")
    memo: dict[int, Any] = {}
    for tensor in _tensors(module):
        if id(tensor) not in memo:
            memo[id(tensor)] = _sent(tensor, put)
    copied = copy.deepcopy(module, memo)
    if any(not isinstance(tensor, RemoteTensor) for tensor in _tensors(copied)):
        raise InvalidRequest(f"{type(module).__name__} copies its parameters in a way of its own and cannot be sent as it is")
    copied.__class__ = type(type(module).__name__, (kind, type(module)), {"__module__": type(module).__module__})
    return copied


def _sent(tensor: torch.Tensor, put: Put) -> torch.Tensor:
    if isinstance(tensor, RemoteTensor):
        raise InvalidRequest(f"the module is at {tensor.location.name} already; use copy.deepcopy(module), or fetch it first")
    remote = put(tensor)
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(remote, requires_grad=tensor.requires_grad)
    return remote


async def _fetched(module: torch.nn.Module, timeout_s: float | None) -> torch.nn.Module:
    remote = {id(tensor): tensor for tensor in _tensors(module) if isinstance(tensor, RemoteTensor)}
    values = await asyncio.gather(*(one._handle.outbox.read(one, timeout_s) for one in remote.values()))
    memo: dict[int, Any] = {}
    for tensor, value in zip(remote.values(), values, strict=True):
        if isinstance(tensor, torch.nn.Parameter):
            value = torch.nn.Parameter(value, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = value
    copied = copy.deepcopy(module, memo)
    if isinstance(copied, _Elsewhere):
        own: Any = next(base for base in type(module).__bases__ if not issubclass(base, _Elsewhere))
        copied.__class__ = own
    return copied


def _tensors(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Every parameter and buffer, those that modules share as often as they are shared."""
    for part in module.modules():
        for tensor in (*part._parameters.values(), *part._buffers.values()):
            if tensor is not None:
                yield tensor


def _outbox_of(module: torch.nn.Module) -> Outbox:
    for tensor in _tensors(module):
        if isinstance(tensor, RemoteTensor):
            return tensor._handle.outbox
    raise InvalidRequest(f"{type(module).__name__} has no remote parameters or buffers any more")


def send(value: object, put: Put) -> Any:
    """A remote tensor for a tensor, a module with remote parameters for a module."""
    if isinstance(value, torch.nn.Module):
        return send_module(value, put)
    if isinstance(value, Linked):
        return value.child.run(send, (value, put), {})
    if isinstance(value, FixedTensor):
        raise InvalidRequest("a node takes ordinary tensors: node.send(x.float_precision())")
    if isinstance(value, RemoteTensor):
        raise InvalidRequest(f"the tensor is at {value.location.name} already; x.move(node) copies it from node to node")
    if not isinstance(value, torch.Tensor):
        raise InvalidRequest(f"send takes a tensor or a module, not {type(value).__name__}; torch.as_tensor makes tensors")
    made = put(value)
    return made.requires_grad_() if value.requires_grad else made
