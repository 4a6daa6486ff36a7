"""Links of one's own in a chain: something that sees every operation on a tensor, and passes it on to what is below it.

    class Counting(grid.Link):
        count = 0

        def run(self, func, args, kwargs):
            Counting.count += 1
            return super().run(func, args, kwargs)

    x = Counting().on(torch.randn(3))          # a torch tensor; so is (x + 1).relu(), and both count

What is below may be an ordinary tensor, one at a node, one on shares, or one with another link.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, NoReturn, Self

import torch

from grid.client.chain import BITS, LINKED, Level, Member, each, shared_at, shown
from grid.client.fixed_precision import fix_precision
from grid.errors import InvalidRequest


class Link(Level):
    """One level of a chain, to be subclassed: `run` sees each operation. Attributes of one's own are copied to results' links."""

    _below: torch.Tensor | None = None

    def on(self, tensor: torch.Tensor) -> Linked:
        """The head of a chain with this link on top of that tensor, detached from autograd: the head has a place of its own."""
        if self._below is not None:
            raise InvalidRequest(f"this {type(self).__name__} is part of a chain already; make another one")
        if not isinstance(tensor, torch.Tensor):
            raise InvalidRequest(f"a link goes on a tensor, not {type(tensor).__name__}; torch.as_tensor makes tensors")
        self._below = tensor.detach()
        made: Linked = torch.Tensor._make_wrapper_subclass(
            Linked,
            tensor.shape,
            strides=tensor.stride(),
            storage_offset=tensor.storage_offset(),
            dtype=tensor.dtype,
            device=tensor.device,
        )
        torch._C._set_throw_on_mutable_data_ptr(made)  # its memory, if any, is below
        made._link = self
        self.under(made)
        return made

    @property
    def child(self) -> Any:
        """The level below, or the ordinary tensor there."""
        below: Any = self._below
        if below is None:
            return None
        level = getattr(below, "child", None)
        return level.under(self) if isinstance(level, Level) else below

    def run(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Do `func` on what is below, and put the tensors that it gives under links like this one.

        `func` is an operation of torch (`torch.ops.aten...`), or a function named as a method of the chain: `get`, `share`, ...
        Among the arguments are heads; `self` is the link of the first of them, and all with links of its class are replaced.
        """
        heads: dict[int, torch.Tensor] = {}

        def below(value: Any) -> Any:
            if not isinstance(value, Linked) or type(value._link) is not type(self):
                return value
            found: Any = value._link._below
            heads[id(found)] = value
            return found

        def linked(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            known = heads.get(id(value))
            if known is None:
                return self._again().on(value)
            if known.shape != value.shape:
                raise InvalidRequest(f"{func} changes a tensor's shape in place: make a new tensor instead")
            return known

        made = func(*each(below, args), **each(below, kwargs))
        return _awaited(made, linked) if inspect.isawaitable(made) else each(linked, made)

    def _again(self) -> Self:
        made = copy.copy(self)
        made._below = made._above = None
        return made


class Linked(torch.Tensor):
    """The head of a chain with a link of the user's. Made by `link.on(tensor)`, and by operations on such heads."""

    _link: Link
    _rank = LINKED

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _first((args, kwargs or {}))._link.run(func, args, kwargs or {})

    @property
    def child(self) -> Link:
        """The level below."""
        return self._link

    def _through(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._link.run(func, (self, *args), kwargs)

    def get(self, **words: Any) -> Any:
        """What `get` of the tensor below gives, under the same link."""
        return self._through(get, **words)

    def reveal(self, **words: Any) -> Any:
        """What `reveal` of the tensor below gives, under the same link."""
        return self._through(reveal, **words)

    def send(self, node: Any) -> Any:
        """What is below, at a node, under the same link."""
        return self._through(send, node)

    def move(self, *places: Any, **words: Any) -> Any:
        """What `move` of the tensor below gives, under the same link."""
        return self._through(move, *places, **words)

    def share(self, *places: Any, **words: Any) -> Any:
        """What is below, on shares, under the same link."""
        return self._through(share, *places, **words)

    def fix_precision(self, bits: int = BITS, **words: Any) -> Any:
        """What is below, in fixed precision, under the same link."""
        return self._through(fix_precision, bits, **words)

    fix_prec = fix_precision

    def float_precision(self) -> Any:
        """What `float_precision` of the tensor below gives, under the same link."""
        return self._through(float_precision)

    float_prec = float_precision

    def tolist(self) -> Any:
        """That of the tensor below."""
        return self._through(torch.Tensor.tolist)

    def numpy(self, *, force: bool = False) -> Any:
        """That of the tensor below."""
        return self._through(torch.Tensor.numpy, force=force)

    def __copy__(self) -> Any:
        return self.detach().requires_grad_(self.requires_grad)  # shares what is below, as torch's own copies share memory

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            if not self.is_leaf:
                raise InvalidRequest("a result that autograd follows cannot be deep-copied (nor in torch); use clone()")
            memo[id(self)] = self.detach().clone().requires_grad_(self.requires_grad)
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise InvalidRequest("a tensor with a link cannot be pickled or saved: save what is below it")

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return shown(self)

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return shown(self) if not spec or self.dim() else format(self.item(), spec)


# Methods of the chain as functions, under the names that a link's `run` sees. Ordinary tensors have some after `grid.hook()`.


def get(tensor: Any, **words: Any) -> Any:
    """`tensor.get()`."""
    if is_ordinary(tensor):
        raise InvalidRequest("get(): the value is here already")
    return tensor.get(**words)


def reveal(tensor: Any, **words: Any) -> Any:
    """`tensor.reveal()`."""
    if is_ordinary(tensor):
        raise InvalidRequest("reveal(): the value is here already")
    return tensor.reveal(**words)


def move(tensor: Any, *places: Any, **words: Any) -> Any:
    """`tensor.move(place)`."""
    if is_ordinary(tensor):
        raise InvalidRequest("move(): the value is here; node.send(x) makes a copy at a node, share(committee) one on shares")
    return tensor.move(*places, **words)


def send(value: Any, node: Any) -> Any:
    """`node.send(value)`, of a tensor or a module."""
    if not isinstance(node, Member):
        raise InvalidRequest(f"send takes a node, such as g.nodes['alice'], not {type(node).__name__}")
    there: Any = node
    return there.send(value)


def float_precision(tensor: Any) -> Any:
    """`tensor.float_precision()`; an ordinary tensor is in full precision already, and comes back as it is."""
    return tensor if is_ordinary(tensor) else tensor.float_precision()


def share(tensor: Any, *places: Any, **words: Any) -> Any:
    """`tensor.share(alice, bob, carol)`."""
    return shared_at(tensor, places, words) if is_ordinary(tensor) else tensor.share(*places, **words)


def is_ordinary(tensor: Any) -> bool:
    """Whether it is a tensor of torch's, and none of ours."""
    return not hasattr(type(tensor), "_rank")


async def _awaited(made: Awaitable[Any], linked: Callable[[Any], Any]) -> Any:
    return each(linked, await made)


def _first(value: Any) -> Linked:
    """The first head with a link among arguments."""
    return next(_heads(value))


def _heads(value: Any) -> Iterator[Linked]:
    if isinstance(value, Linked):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _heads(one)
    elif isinstance(value, dict):
        yield from _heads(list(value.values()))
