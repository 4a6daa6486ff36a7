"""What an operation on remote tensors returns, without asking the node: shapes, strides and dtypes.

torch itself answers, by running the operation on tensors of the "meta" device, which have shapes and no data. That takes
tens of microseconds, so answers are kept: for the same operation, with operands of the same geometry and the same integers,
strings and lists, the answer is the same. Floating-point arguments never decide a shape on their own and are left out of
the key, so an optimizer whose step size changes at each step still finds its answers here.

Geometries are interned: two tensors of one geometry hold the same `Meta`, which makes a key cheap to hash and compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from grid.errors import InvalidRequest
from grid.tensors.ops import OPS, Op, bind, infer, op_of, portable

MAX_ENTRIES = 16384
"""Answers kept. Programs use a few hundred; one that uses more starts anew rather than grow for ever."""

META = torch.device("meta")
CPU = torch.device("cpu")

# The first operation on the meta device makes torch import some 800 modules, for a second or more. That is done here, not
# when a program's first operation, on a running event loop, needs it. (It also raises and catches errors, whose tracebacks would
# keep the operands of that operation alive until the collector runs.)
torch.empty(0, device=META).neg()


SAME_DTYPE: Mapping[str, tuple[int, ...]] = {
    "mm": (0, 1),
    "mv": (0, 1),
    "addmm": (0, 1, 2),
    "addmv": (0, 1, 2),
    "convolution": (0, 1, 2),
    "native_layer_norm": (0, 2, 3),
    "native_group_norm": (0, 1, 2),
    "native_batch_norm": (0, 1, 2, 3, 4),
    "binary_cross_entropy": (0, 1, 2),
    "index_add": (0, 3),
    "index_add_": (0, 3),
    "index_put": (0, 2),
    "index_put_": (0, 2),
}
"""Positions of operands that a processor wants of one dtype, where the meta device does not mind: the line would be lost."""

NARROW = (torch.float16, torch.bfloat16)
"""Dtypes of inputs that normalisations take with parameters of another."""


@dataclass(frozen=True, slots=True, eq=False)
class Meta:
    """A geometry: what torch needs to know of a tensor to compute shapes. `tensor` has it, on the meta device, at offset 0."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    tensor: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """One result of an operation: a new tensor of geometry `meta`, or the operand `operand` itself (written in place), or None.

    `operand` is a position, or the name of a keyword argument (`out`). `offset` is where a view starts, counted in elements
    from its base's start; None for fresh memory.
    """

    meta: Meta | None
    operand: int | str | None = None
    offset: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """What is known of one operation on operands of one geometry.

    `results` is a single Result, or a tuple of them for operations that return several values.
    """

    op: str
    results: Result | tuple[Result, ...]


Key = tuple[Any, ...]


class Shapes:
    """The answers known to one client. Used by several threads: single dict operations, no lock; at worst work is done twice."""

    def __init__(self) -> None:
        self._entries: dict[Key, Entry] = {}
        self._metas: dict[Key, Meta] = {}
        self.find = self._entries.get

    def meta(self, shape: Sequence[int], dtype: torch.dtype, stride: Sequence[int] | None = None) -> Meta:
        """The geometry with these values; row-major without `stride`."""
        if stride is None:
            tensor = torch.empty(tuple(shape), dtype=dtype, device=META)
        else:
            tensor = torch.empty_strided(tuple(shape), tuple(stride), dtype=dtype, device=META)
        key = (dtype, tuple(tensor.shape), tensor.stride())
        found = self._metas.get(key)
        if found is None:
            if len(self._metas) >= MAX_ENTRIES:
                self._metas.clear()
                self._entries.clear()
            found = self._metas.setdefault(key, Meta(tensor.shape, tensor.stride(), dtype, tensor))
        return found

    def learn(self, key: Key, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Entry:
        """Run `func` on meta tensors and keep the answer under `key`.

        `args` and `kwargs` hold `Meta` for each tensor. Raises `OpNotSupported`, `InvalidRequest`, and what torch raises where
        shapes or dtypes do not fit together.
        """
        op = op_of(func)
        _refuse_unknown_sizes(op.name, args)
        _refuse_mixed_dtypes(op.name, args)
        found = _run(op, func, args, kwargs)
        results: Result | tuple[Result, ...]
        if isinstance(found, (tuple, list)):
            found = _asked_for(func, args, kwargs, found)
            results = tuple(self._result(func, place, one, kwargs) for place, one in enumerate(found))
        elif found is None:
            results = ()
        else:
            results = self._result(func, 0, found, kwargs)
        entry = Entry(op.name, results)
        if len(self._entries) >= MAX_ENTRIES:
            self._entries.clear()
        self._entries[key] = entry
        return entry

    def _result(self, func: Any, place: int, value: Any, kwargs: Mapping[str, Any]) -> Result:
        if value is None:
            return Result(None)
        if not isinstance(value, torch.Tensor):
            raise InvalidRequest(f"{func} returns a {type(value).__name__}, which needs the values; get() the tensor first")
        declared = func._schema.returns
        alias = declared[place if len(declared) > 1 else 0].alias_info
        if alias is None:
            return Result(self._interned(value))
        if alias.is_write:
            for number, argument in enumerate(func._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.before_set == alias.before_set:
                    return Result(None, operand=argument.name if argument.name in kwargs else number)
        return Result(self._interned(value), offset=int(value.storage_offset()))

    def _interned(self, value: torch.Tensor) -> Meta:
        return self.meta(value.shape, value.dtype, value.stride())


def is_known(func: Any) -> bool:
    """Whether nodes run this operation."""
    return str(func) in OPS


def written_arguments(func: Any) -> tuple[tuple[int, str], ...]:
    """Position and name of each argument that `func` writes to, as its schema says."""
    return tuple(
        (number, argument.name)
        for number, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def _run(op: Op, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What `func` returns on meta tensors; the op table knows some that torch cannot run there."""
    values, words = _stand_ins(args), {name: _stand_in(value) for name, value in kwargs.items()}
    if op.dense:  # as nodes do; results take their strides from the operands
        values = [value.contiguous() if isinstance(value, torch.Tensor) else value for value in values]
    with torch.no_grad():
        try:
            return func(*values, **words)
        except NotImplementedError:
            _, sent, sent_words = portable(func, values, words)
            found = infer(bind(op, sent, sent_words))
            return found[0] if len(found) == 1 else found or None


def _asked_for(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], found: Sequence[Any]) -> Sequence[Any]:
    """Gradients that the caller's `output_mask` leaves out are None; on the meta device torch gives all of them."""
    for number, argument in enumerate(func._schema.arguments):
        if argument.name == "output_mask":
            mask = kwargs["output_mask"] if "output_mask" in kwargs else args[number]
            return [one if wanted else None for one, wanted in zip(found, mask, strict=True)]
    return found


def _stand_ins(values: Sequence[Any]) -> list[Any]:
    return [_stand_in(value) for value in values]


def _stand_in(value: Any) -> Any:
    """The argument for the run on meta tensors."""
    if isinstance(value, Meta):
        return value.tensor
    if isinstance(value, torch.device):
        return META
    if isinstance(value, (list, tuple)):
        return _stand_ins(value)
    return value


def _refuse_unknown_sizes(op: str, args: Sequence[Any]) -> None:
    """A boolean mask as an index makes a size that only the values tell."""
    if op == "aten.index.Tensor" and any(isinstance(one, Meta) and one.dtype in (torch.bool, torch.uint8) for one in args[1]):
        raise InvalidRequest(
            "x[mask] has a size that depends on values which are not here; use torch.where(mask, x, 0), multiply by the mask,"
            " or index with a tensor of positions"
        )


def _refuse_mixed_dtypes(op: str, args: Sequence[Any]) -> None:
    """Operands of two dtypes would fail at the node, long after the line that brought them together."""
    name = op.split(".")[1]
    operands = [args[place] for place in SAME_DTYPE.get(name, ()) if place < len(args)]
    dtypes = list(dict.fromkeys(one.dtype for one in operands if isinstance(one, Meta)))
    if len(dtypes) > 1 and not ("norm" in name and dtypes[0] in NARROW):
        listed = " and ".join(str(one).removeprefix("torch.") for one in dtypes)
        raise InvalidRequest(f"{op}: its operands are {listed}, and must be of one dtype; convert one with x.to({dtypes[0]})")
