"""The chain of a tensor: what stands for its value, level below level, as one can walk it by `child` and back by `parent`.

    head (a torch tensor) -> FixedPrecision -> Shares -> {node's name: Component}

The head is what one computes with. Levels are looked at: each is made when it is first asked for, is owned by the one above it,
and knows that one weakly; so a remote value goes when its head goes, without Python's collector. Who keeps a level keeps the
value.
Links of one's own (`links.Link`) stand between a head and the levels here.
"""

from __future__ import annotations

import abc
import inspect
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

import torch
from torch.utils.weak import TensorWeakRef

from grid.display import printable
from grid.errors import InvalidRequest, ReleaseDenied

BITS = 18
"""Fraction bits of every fixed-precision tensor, here and on shares."""


class Level:
    """Something below a head. `child` is the level below it, or the values themselves."""

    child: Any
    _above: Callable[[], Any] | None = None

    @property
    def parent(self) -> Any:
        """The level above, or the head; None once that has gone."""
        return None if self._above is None else self._above()

    def under(self, above: Any) -> Any:
        """This level, below that one from now on."""
        self._above = TensorWeakRef(above) if isinstance(above, torch.Tensor) else weakref.ref(above)
        return self

    def __repr__(self) -> str:
        return type(self).__name__


class FixedPrecision(Level):
    """Real numbers as whole numbers of 2**-bits. `child`: these whole numbers (int64) where they are here, else `Shares`."""

    bits = BITS

    def __init__(self, child: Any, of: Any = None) -> None:
        self.child = child.under(self) if isinstance(child, Level) else child
        self.of = of
        """What the head stood for then: a head that is written in place stands for something else."""

    def __repr__(self) -> str:
        return f"FixedPrecision(bits={self.bits})"


class Shares(Level):
    """A value in three random parts, two of which each node of a committee has. `child`: node's name -> `Component`."""

    def __init__(self, handle: Any, shape: torch.Size) -> None:
        self._handle, self._shape = handle, shape
        self._components: Mapping[str, Component] | None = None

    @property
    def location(self) -> Any:
        """The committee."""
        return self._handle.outbox

    @property
    def child(self) -> Mapping[str, Component]:
        """Node's name -> what stands for this node's parts."""
        if self._components is None:
            made = {one.name: Component(self._handle, one, self._shape).under(self) for one in self.location.sites}
            self._components = MappingProxyType(made)
        return self._components


class Component(Level):
    """Stands for the parts that one node has of a value on shares. They are random numbers, and never leave it by themselves."""

    child = None

    def __init__(self, handle: Any, location: Any, shape: torch.Size) -> None:
        self._handle = handle  # keeps the value
        self.location, self.shape = location, shape

    def _stays(self, what: str) -> NoReturn:
        raise ReleaseDenied(
            f"{what} would take one node's parts of a value on shares out of {self.location.name}: no node gives them to anybody",
            rule="component",
            node=self.location.name,
            instead="open the whole value, x.get() or x.reveal(), if its owners' rules allow, or move it to another committee",
        )

    def get(self, **_: Any) -> NoReturn:
        """`ReleaseDenied`."""
        self._stays("get()")

    def reveal(self, **_: Any) -> NoReturn:
        """`ReleaseDenied`."""
        self._stays("reveal()")

    def move(self, *_: Any, **__: Any) -> NoReturn:
        """`ReleaseDenied`."""
        self._stays("move()")

    def share(self, *_: Any, **__: Any) -> NoReturn:
        """`ReleaseDenied`."""
        self._stays("share()")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        raise InvalidRequest("one node's parts of a value on shares are random numbers: compute with the head of the chain")

    def __repr__(self) -> str:
        return f"Component({tuple(self.shape)} at {printable(self.location.name)})"


def shown(head: torch.Tensor) -> str:
    """A head and its chain, on one line."""
    levels = [f"{str(head.dtype).removeprefix('torch.')} {tuple(head.shape)}"]
    below: Any = getattr(head, "child", None)
    while isinstance(below, Level):
        levels.append(repr(below))
        below = below.child
    if isinstance(below, Mapping):
        levels.append(", ".join(map(printable, below)))
    elif below is not None:
        levels.append(repr(below))
    return " > ".join(levels)


def each(change: Callable[[Any], Any], value: Any) -> Any:
    """Arguments or results of an operation with each item changed, in lists, tuples and dicts."""
    if isinstance(value, list | tuple):
        made = [each(change, one) for one in value]
        return made if isinstance(value, list) else tuple(made)
    if isinstance(value, dict):
        return {name: each(change, one) for name, one in value.items()}
    return change(value)


# ---------------------------------------------------------------- who goes first, where heads of several kinds meet

PLACED, FIXED, LINKED = range(3)
"""`_rank` of tensors at nodes and committees, of fixed-precision ones here, and of those with a link of the user's."""


def outranked(rank: int, types: Iterable[type]) -> bool:
    """Whether an operand of another class has to see to the operation."""
    return any(getattr(one, "_rank", rank) > rank for one in types)


# ---------------------------------------------------------------- x.share(alice, bob, carol)


class Member(abc.ABC):
    """A node as one of a committee. `nodes.Node` is one."""

    @abc.abstractmethod
    def gather(self, places: Sequence[Any]) -> Any:
        """The committee of these nodes, or names of nodes, of this one's client; an awaitable of it in an asynchronous client."""


CLIENTS: weakref.WeakSet[Any] = weakref.WeakSet()
"""The clients of this process that are open: where there is one alone, names of nodes are of its grid."""


def gathered(places: Sequence[Any], words: Mapping[str, Any], own: Any = None) -> Any:
    """The committee that `x.share(*places, **words)` means, or an awaitable of it. `own`: the node that has the value."""
    for name in words:
        raise InvalidRequest(_word(name))
    if len(places) == 1 and not isinstance(places[0], str | Member):
        return places[0]
    if len(places) == 1:
        raise InvalidRequest("a value goes on shares at three nodes: x.share(alice, bob, carol), or x.share(committee)")
    members = [one for one in (*places, own) if isinstance(one, Member)]
    if members:
        return members[0].gather(places)
    clients = list(CLIENTS)
    if len(clients) != 1:
        raise InvalidRequest(
            f"{'no client' if not clients else 'more than one client'} of this process is connected to a grid, so names alone do"
            ' not say which nodes are meant: pass nodes, such as g.nodes["alice"], or g.committee(...)'
        )
    return clients[0].gather(places)


def at_committee(places: Sequence[Any], words: Mapping[str, Any], own: Any, then: Callable[[Any], Any]) -> Any:
    """What `then` makes of the committee that is `gathered`, or an awaitable of it."""
    committee = gathered(places, words, own)
    return _awaited(committee, then) if inspect.isawaitable(committee) else then(committee)


async def _awaited(committee: Awaitable[Any], then: Callable[[Any], Any]) -> Any:
    made = then(await committee)
    return await made if inspect.isawaitable(made) else made


def shared_at(value: Any, places: Sequence[Any], words: Mapping[str, Any], own: Any = None) -> Any:
    """`value.share(*places, **words)`: on shares at a committee."""

    def share(committee: Any) -> Any:
        if not hasattr(committee, "share"):
            raise InvalidRequest(f"share takes three nodes, their names, or a committee, not {type(committee).__name__}")
        return committee.share(value)

    return at_committee(places, words, own, share)


def _word(name: str) -> str:
    if name == "crypto_provider":
        return (
            "crypto_provider: there is none, and none is needed. Three nodes make their randomness themselves, pairwise, and no"
            " dealer has to be trusted: leave the argument out, x.share(alice, bob, carol)"
        )
    if name in ("protocol", "field", "dtype", "requires_grad"):
        return f"{name}: shares are replicated ones mod 2**64 at three nodes, and nothing else: leave the argument out"
    return f"share takes three nodes, their names, or a committee; it has no argument {name!r}"
