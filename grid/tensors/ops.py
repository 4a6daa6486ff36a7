"""The op table: what an operation's name stands for here, and how its received arguments become the arguments of a call.

`OPS` binds the names of `grid.tensors.table` to torch's operations once, at import; a received name only selects from it.
`bind` turns received arguments into a `Bound` call whose every value has the type that the operation's schema asks for, or
raises `InvalidRequest`; it allocates nothing. `infer` runs the operation on meta tensors, which have shapes and no memory:
that is the shape rule of every operation, and what limits are checked against before anything real runs.

Devices, layouts, pinned memory and generators are the node's business: an argument that names one is refused, and
`portable` leaves them out on the sending side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch._ops import OpOverload

from grid.errors import InvalidRequest, OpNotSupported
from grid.tensors import table
from grid.tensors.buffers import SHORT_DTYPES, torch_dtype
from grid.tensors.quick import quick
from grid.wire.messages import Arg, DType, MemoryFormat

MAX_LIST = 4096
"""No argument list, and no operation's list of results, is longer."""

MAX_TEXT = 64
LARGEST_INT = (1 << 63) - 1
LARGEST_SIZE = 1 << 40
"""No number in a list of sizes, strides or repetitions is larger."""

MEMORY_FORMATS: Mapping[str, torch.memory_format] = MappingProxyType(
    {"contiguous": torch.contiguous_format, "preserve": torch.preserve_format, "channels_last": torch.channels_last}
)
_FORMAT_NAMES = {value: name for name, value in MEMORY_FORMATS.items()}

_MISSING = object()
_RANDOM_RULES = ("random", "draw")
_LIST_RULES = ("lists", "each")
_TENSOR_KINDS = ("Tensor", "List[Tensor]", "List[Optional[Tensor]]")
_REFUSED_KINDS = ("Layout", "Device", "Generator")


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument of an operation. `kind` is the schema's type without `Optional`, or "refused"."""

    name: str
    kind: str
    optional: bool
    keyword: bool
    default: Any


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """One operation of the table.

    `mutates` names the arguments that it writes. `rule` is its row rule, `bounds` the check made before it runs.
    `plannable`: plans may hold it (it writes nothing and draws nothing). `private_error`: whether it fails can depend on values.
    `unfilled`: it would return fresh memory as it is, so its results are filled with zeros. `returns_target`: what it returns
    is the argument that it wrote. `strided`: whether it works can depend on its tensors' strides. `dense`: its operands are
    made dense first. `keywords`: position, name and default of the arguments that torch takes by name and a node may give. `run`
    is `call` as it may be used on any operands.
    """

    name: str
    call: OpOverload[Any, Any]
    parameters: tuple[Parameter, ...]
    positional: int
    mutates: tuple[str, ...]
    rule: str
    bounds: str
    plannable: bool
    private_error: bool
    unfilled: bool
    returns_target: bool
    strided: bool
    dense: bool
    index: Mapping[str, int]
    keywords: tuple[tuple[int, str, Any], ...]
    run: Callable[..., Any]

    @property
    def base(self) -> str:
        """The operation's own name without overload: "mm" for "aten.mm.default"."""
        return self.name.split(".")[1]

    @property
    def views(self) -> bool:
        """Whether results may lie in the memory of an argument."""
        return any(value.alias_info is not None for value in self.call._schema.returns)


@dataclass(slots=True, eq=False)
class Bound:
    """A call whose arguments fit: `values` in the schema's order, those not given at their defaults.

    Nobody changes one; it is not declared frozen because one is made for every command, and that costs three times as much.
    """

    op: Op
    values: tuple[Any, ...]

    def __getitem__(self, name: str) -> Any:
        """The argument of this name."""
        return self.values[self.op.index[name]]

    def get(self, name: str, default: Any = None) -> Any:
        """The argument of this name, or `default` where the operation has no such argument."""
        at = self.op.index.get(name)
        return default if at is None else self.values[at]

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor among the arguments, in order."""
        for value in self.values:
            if isinstance(value, Tensor):
                yield value
            elif type(value) is list:
                yield from (item for item in value if isinstance(item, Tensor))

    def run(self, **extra: Any) -> Any:
        """Call the operation with these values."""
        op, values = self.op, self.values
        if not op.keywords and not extra:
            return op.run(*values[: op.positional])
        given = {name: value for at, name, default in op.keywords if (value := values[at]) is not default and value is not None}
        return op.run(*values[: op.positional], **given, **extra)


def _dense_call(call: OpOverload[Any, Any], rule: str) -> Callable[..., Any]:
    """The torch operation, on dense copies of operands that its kernel would misread (`Op.dense`).

    Operands that it reads right stay as they are, so that the arrangement of the results is torch's own.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if rule == "attention":
            wrong = {id(tensor) for tensor in tensors if tensor.dim() and tensor.stride(-1) != 1}
        elif rule == "nll_backward":
            wrong = {id(tensor) for tensor in tensors if not tensor.is_contiguous()}
        else:
            wrong = set() if _in_one_format(tensors) else {id(tensor) for tensor in tensors}
        if not wrong:
            return call(*args, **kwargs)
        named = {name: value.contiguous() if id(value) in wrong else value for name, value in kwargs.items()}
        return call(*[value.contiguous() if id(value) in wrong else value for value in args], **named)

    return run


def _in_one_format(tensors: Sequence[Tensor]) -> bool:
    """Whether all are dense, or all are dense with the pictures among them channels last."""
    if all(tensor.is_contiguous() for tensor in tensors):
        return True
    last = torch.channels_last
    return all(tensor.is_contiguous(memory_format=last) if tensor.dim() == 4 else tensor.is_contiguous() for tensor in tensors)


def lookup(name: str) -> Op:
    """The operation of this name. Raises `OpNotSupported`, with advice where there is some."""
    op = OPS.get(name) if isinstance(name, str) else None
    if op is None:
        raise OpNotSupported(_refusal(str(name)[:MAX_TEXT]), op=str(name)[:MAX_TEXT])
    return op


def op_of(call: OpOverload[Any, Any]) -> Op:
    """The table's entry of a torch operation. Raises `OpNotSupported`, with advice where there is some."""
    op = _BY_CALL.get(call)
    if op is None:
        raise OpNotSupported(_refusal(str(call)), op=str(call)[:MAX_TEXT])
    return op


def _refusal(name: str) -> str:
    parts = name.split(".")
    advice = table.INSTEAD.get(parts[1], "") if len(parts) > 1 else ""
    return f"{name} is not an operation that runs remotely" + (f": {advice}" if advice else "")


def bind(op: Op, args: Sequence[Arg], kwargs: Mapping[str, Arg]) -> Bound:
    """Fit received arguments, references already replaced by tensors, to the operation. Raises `InvalidRequest`."""
    if len(args) > op.positional:
        raise InvalidRequest(f"{op.name} takes {op.positional} arguments by position, {len(args)} came", op=op.name)
    values = [_MISSING] * len(op.parameters)
    for at, value in enumerate(args):
        values[at] = _fit(op, op.parameters[at], value)
    for name, value in kwargs.items():
        found = op.index.get(name) if isinstance(name, str) else None
        if found is None:
            raise InvalidRequest(f"{op.name} has no argument {str(name)[:MAX_TEXT]!r}", op=op.name)
        if values[found] is not _MISSING:
            raise InvalidRequest(f"{op.name} got the argument {name!r} twice", op=op.name)
        values[found] = _fit(op, op.parameters[found], value)
    for at, value in enumerate(values):
        if value is _MISSING:
            values[at] = op.parameters[at].default
            if values[at] is _MISSING:
                raise InvalidRequest(f"{op.name} needs the argument {op.parameters[at].name!r}", op=op.name)
    return Bound(op, tuple(values))


def portable(call: OpOverload[Any, Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Op, list[Any], dict[str, Any]]:
    """A torch call in the terms that travel: devices and the like left out, dtypes and memory formats by name.

    Tensors stay as they are, for the caller to replace. Raises `OpNotSupported` or `InvalidRequest`.
    """
    op = op_of(call)
    refused = {parameter.name for parameter in op.parameters if parameter.kind == "refused"}
    return op, [_portable(v) for v in args], {name: _portable(v) for name, v in kwargs.items() if name not in refused}


def _portable(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        if value not in SHORT_DTYPES:
            raise InvalidRequest(f"{value} tensors cannot be made remotely")
        return DType(SHORT_DTYPES[value])
    if isinstance(value, torch.memory_format):
        if value not in _FORMAT_NAMES:
            raise InvalidRequest(f"the memory format {value} is not known remotely")
        return MemoryFormat(_FORMAT_NAMES[value])
    if isinstance(value, (list, tuple)):
        return [_portable(item) for item in value]
    return value


# ---------------------------------------------------------------- shapes


class Meta(NamedTuple):
    """A tensor without its values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> Meta:
        return cls(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)

    def make(self) -> Tensor:
        """A meta tensor like this."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")


def infer(bound: Bound) -> list[Tensor]:
    """The tensors that the call would return, as meta tensors (for an in-place operation, its target).

    Raises `InvalidRequest` where the arguments do not fit together; the text depends on shapes, dtypes and constants alone.
    """
    try:
        found = quick(bound, ask_torch)
    except RuntimeError:  # sizes whose strides do not fit into 64 bits, say: torch tells in its own words
        found = None
    return found or ask_torch(bound)


def ask_torch(bound: Bound) -> list[Tensor]:
    """`infer`, always by a run on meta tensors."""
    op = bound.op
    try:
        if op.base in _SHAPES:
            return _SHAPES[op.base](bound)
        values = tuple(_to_meta(value) for value in bound.values)
        extra = {"device": "meta"} if "device" in op.index and next(bound.tensors(), None) is None else {}
        result = Bound(op, values).run(**extra)
    except Exception as error:  # torch raises many classes here, all about arguments that do not fit together
        raise InvalidRequest(f"{op.name}: {_first_line(error)}", op=op.name) from None
    results = flatten(result)
    if op.rule == "batch_norm" and not bound.get("training", "no_" not in op.base):
        # In evaluation the processor's kernel saves no statistics; the meta kernel says that it does.
        results[1:3] = [torch.empty([0], dtype=saved.dtype, device="meta") for saved in results[1:3]]
    if op.base == "_linalg_svd" and results[2].dim() > 1:
        results[2] = results[2].mT.contiguous().mT  # the processor's kernel makes this one by columns, too
    return results


def shapes(op: Op, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """`infer` of unbound arguments; tensors may be of any device and class, only their shape, stride and dtype are read."""
    return infer(bind(op, args, kwargs))


def flatten(result: Any) -> list[Tensor]:
    """The tensors of an operation's result, in order; an output that was not asked for is left out."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, (list, tuple)):
        return [tensor for item in result for tensor in flatten(item)]
    return []


def _to_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Meta.of(value).make()
    if type(value) is list:
        return [_to_meta(item) for item in value]
    return value


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _histogram_shape(bound: Bound) -> list[Tensor]:
    return [torch.empty([bound["bins"]], dtype=bound["self"].dtype, device="meta")]


_SHAPES: Mapping[str, Callable[[Bound], list[Tensor]]] = {"histc": _histogram_shape, "_linalg_check_errors": lambda _: []}
"""Operations that torch cannot run on meta tensors."""


# ---------------------------------------------------------------- arguments


def _fit(op: Op, parameter: Parameter, value: Any) -> Any:
    if value is None:
        if parameter.optional or parameter.kind == "refused":
            return None
    elif parameter.kind != "refused":
        try:
            return _FITS[parameter.kind](op, parameter, value)
        except _MisfitError as misfit:
            raise InvalidRequest(f"{op.name}: the argument {parameter.name!r} {misfit}", op=op.name) from None
    else:
        raise InvalidRequest(f"{op.name}: the node decides on {parameter.name!r}; leave it out", op=op.name)
    raise InvalidRequest(f"{op.name}: the argument {parameter.name!r} must be given", op=op.name)


class _MisfitError(Exception):
    """What is wrong with one argument."""


def _tensor(op: Op, parameter: Parameter, value: Any) -> Any:
    if isinstance(value, Tensor):
        return value
    if op.rule in ("elementwise", "fill") and parameter.name != "self":
        return _number(op, parameter, value)  # torch hands a Python number to a tensor argument as it is
    raise _MisfitError("must be a tensor")


def _tensors(op: Op, parameter: Parameter, value: Any) -> list[Any]:
    return [_tensor(op, parameter, item) for item in _list(value)]


def _optional_tensors(op: Op, parameter: Parameter, value: Any) -> list[Any]:
    return [None if item is None else _tensor(op, parameter, item) for item in _list(value)]


def _list(value: Any) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise _MisfitError("must be a list")
    if len(value) > MAX_LIST:
        raise _MisfitError(f"has {len(value)} items; at most {MAX_LIST} are allowed")
    return list(value)


def _number(op: Op, parameter: Parameter, value: Any) -> bool | int | float:
    if type(value) is float or type(value) is bool:
        return value
    if type(value) is int:
        return _int(op, parameter, value)
    raise _MisfitError("must be a number")


def _int(op: Op, parameter: Parameter, value: Any) -> int:
    if type(value) is not int:
        raise _MisfitError("must be a whole number")
    if not -LARGEST_INT <= value <= LARGEST_INT:
        raise _MisfitError("does not fit into 64 bits")
    return value


def _float(op: Op, parameter: Parameter, value: Any) -> float:
    number = _number(op, parameter, value)
    if type(number) is bool:
        raise _MisfitError("must be a number")
    return float(number)


def _bool(op: Op, parameter: Parameter, value: Any) -> bool:
    if type(value) is not bool:
        raise _MisfitError("must be true or false")
    return value


def _ints(op: Op, parameter: Parameter, value: Any) -> list[int]:
    out = [_int(op, parameter, item) for item in (_list(value) if not isinstance(value, int) else [value])]
    if any(abs(item) > LARGEST_SIZE for item in out):
        raise _MisfitError("holds a number larger than 2**40")
    return out


def _numbers(op: Op, parameter: Parameter, value: Any) -> list[bool | int | float]:
    return [_number(op, parameter, item) for item in _list(value)]


def _bools(op: Op, parameter: Parameter, value: Any) -> list[bool]:
    return [_bool(op, parameter, item) for item in _list(value)]


def _text(op: Op, parameter: Parameter, value: Any) -> str:
    if not isinstance(value, str) or isinstance(value, (DType, MemoryFormat)) or len(value) > MAX_TEXT:
        raise _MisfitError("must be a short text")
    return str(value)


def _dtype(op: Op, parameter: Parameter, value: Any) -> torch.dtype:
    if isinstance(value, DType):
        return torch_dtype(value)
    if isinstance(value, torch.dtype) and value in SHORT_DTYPES:
        return value
    raise _MisfitError("must be a dtype")


def _memory_format(op: Op, parameter: Parameter, value: Any) -> torch.memory_format:
    found = MEMORY_FORMATS.get(value) if isinstance(value, MemoryFormat) else value
    if not isinstance(found, torch.memory_format) or found not in _FORMAT_NAMES:
        raise _MisfitError(f"must be one of the memory formats {', '.join(MEMORY_FORMATS)}")
    return found


_FITS: Mapping[str, Callable[[Op, Parameter, Any], Any]] = {
    "Tensor": _tensor,
    "List[Tensor]": _tensors,
    "List[Optional[Tensor]]": _optional_tensors,
    "number": _number,
    "List[number]": _numbers,
    "int": _int,
    "SymInt": _int,
    "List[int]": _ints,
    "List[SymInt]": _ints,
    "float": _float,
    "bool": _bool,
    "List[bool]": _bools,
    "str": _text,
    "ScalarType": _dtype,
    "MemoryFormat": _memory_format,
}


# ---------------------------------------------------------------- the table, bound to torch


def _parameter(argument: Any) -> Parameter:
    kind = str(argument.real_type)
    optional = kind.startswith("Optional[")
    if optional:
        kind = kind[len("Optional[") : -1]
    if kind in _REFUSED_KINDS or argument.name == "pin_memory":
        kind = "refused"
    elif kind not in _FITS:
        raise RuntimeError(f"an operation of the table has an argument of type {kind}")
    default = argument.default_value if argument.has_default_value() else _MISSING
    return Parameter(argument.name, kind, optional, bool(argument.kwarg_only), default)


def _bind_call(name: str) -> OpOverload[Any, Any] | None:
    """The operation of one of *our* names; None where this version of torch has none."""
    base, overload = name.split(".")
    packet = getattr(torch.ops.aten, base, None)
    return cast("OpOverload[Any, Any] | None", getattr(packet, overload, None))


def _make(name: str, call: OpOverload[Any, Any], rule: str, bounds: str) -> Op:
    parameters = tuple(_parameter(argument) for argument in call._schema.arguments)
    written = [a.name for a in call._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    mutates = tuple(dict.fromkeys([*written, *table.HIDDEN_WRITES.get(name, ())]))
    return Op(
        name="aten." + name,
        call=call,
        parameters=parameters,
        positional=sum(not p.keyword for p in parameters),
        mutates=mutates,
        rule=rule,
        bounds=bounds,
        plannable=not mutates and rule not in _RANDOM_RULES and rule not in _LIST_RULES,
        private_error=bounds in table.PRIVATE_BOUNDS or rule == "row_free" or name in table.FAILING,
        unfilled=name.split(".")[0] in ("empty", "empty_like", "new_empty", "new_empty_strided"),
        returns_target=any(r.alias_info is not None and r.alias_info.is_write for r in call._schema.returns),
        strided=bool(mutates) or rule == "view",
        dense=rule in table.DENSE_RULES,
        index=MappingProxyType({p.name: at for at, p in enumerate(parameters)}),
        keywords=tuple((at, p.name, p.default) for at, p in enumerate(parameters) if p.keyword and p.kind != "refused"),
        run=_dense_call(call, rule) if rule in table.DENSE_RULES else call,
    )


def _load() -> dict[str, Op]:
    bounds = {name: kind for kind, names in table.BOUNDS.items() for name in names.split()}
    ops: dict[str, Op] = {}
    for rule, names in table.RULES.items():
        for name in names.split():
            call = _bind_call(name)
            if "aten." + name in ops:
                raise RuntimeError(f"{name} is in the op table twice")
            if call is not None:
                ops["aten." + name] = _make(name, call, rule, bounds.get(name, "outputs"))
    return ops


OPS: Mapping[str, Op] = MappingProxyType(_load())
"""Name ("aten.mm.default") -> operation."""

_BY_CALL: Mapping[OpOverload[Any, Any], Op] = {op.call: op for op in OPS.values()}


def elements(shape: Sequence[int]) -> int:
    """How many elements a tensor of this shape has, repeated ones of an expanded dimension counted."""
    return math.prod(shape)
