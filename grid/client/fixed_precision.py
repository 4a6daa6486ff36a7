"""Fixed-precision tensors in this process: `x.fix_precision()`, which is what a value is before it goes on shares, and after.

Each is a whole number of 2**-18 per element. Operations on them are those of the secure engine, run in the clear: what they give
here is what shares give, but for the last bit, and what shares cannot do is refused here alike. Results that are no real numbers
(comparisons, positions) are ordinary tensors.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np
import torch

from grid.client.chain import BITS, FIXED, FixedPrecision, each, outranked, shared_at, shown
from grid.client.dispatch import NEEDS_VALUES, USE_GET, Dispatcher, Handle
from grid.client.origins import Origin, describe
from grid.client.rewriting import TWINS, VIEWS, mark, rewritten
from grid.client.shapes import CPU, Meta, Shapes
from grid.client.tensors import RemoteTensor
from grid.errors import ExecutionFailed, GridError, InvalidRequest
from grid.ids import ObjectId
from grid.smpc.interpreter import Call, Value, fraction_bits
from grid.smpc.plain import Plain, completed
from grid.smpc.shares import Shared
from grid.tensors import fixed
from grid.tensors.buffers import from_frame
from grid.wire.messages import Command, Inline, Ref, TensorFrame

UNLIMITED = 1 << 62

USE_FLOAT = "x.float_precision() is an ordinary tensor: write x.float_precision()"


class FixedTensor(RemoteTensor):
    """A fixed-precision tensor in this process. Made by `fix_precision`, by `get()` of a value on shares, and by operations."""

    _rank = FIXED
    _level: FixedPrecision | None = None

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if len(types) > 1:
            if outranked(FIXED, types):
                return NotImplemented
            return func(*each(plain, args), **each(plain, kwargs))  # beside a value elsewhere it is a public one
        twin = TWINS.get(func)
        if twin is not None:
            if not isinstance(args[0], FixedTensor):
                raise InvalidRequest(f"{func} would write a fixed-precision tensor into another one: fix_precision() that, too")
            return rewritten(args[0], lambda: _dispatch(twin, args, kwargs), str(func))
        made = _dispatch(func, args, kwargs)
        if func in VIEWS and isinstance(args[0], FixedTensor):
            mark(args[0], made)
        return each(_plain_unless_real, made)

    @property
    def child(self) -> FixedPrecision:
        """The level below: `FixedPrecision`, whose child has the whole numbers (int64)."""
        if self._level is None or self._level.of is not self._handle.ref:
            self._level = FixedPrecision(HERE.whole(self), self._handle.ref).under(self)
        return self._level

    def float_precision(self) -> torch.Tensor:
        """An ordinary tensor of the same dtype; detached from autograd."""
        return fixed.decode(HERE.whole(self), BITS, self.dtype)

    float_prec = float_precision

    def fix_precision(self, bits: int = BITS, **words: Any) -> FixedTensor:
        """It is one already."""
        check_bits(bits, words)
        return self

    fix_prec = fix_precision

    def share(self, *places: Any, **words: Any) -> Any:
        """On secret shares at three nodes, given as nodes, by name, or as a committee. The whole numbers are split here, and go
        out as they are. With nodes, an awaitable in an asynchronous client."""
        return shared_at(self, places, words)

    def get(self, *, timeout: float | None = None) -> NoReturn:
        """It is here."""
        raise InvalidRequest("the value is here already: x.float_precision() is an ordinary tensor")

    def move(self, *to: Any, timeout: float | None = None) -> NoReturn:
        """It is here."""
        raise InvalidRequest("the value is here: x.share(alice, bob, carol) shares it, node.send(x.float_precision()) sends it")

    def run_plan(self, plan: Any, leaves: Sequence[Any]) -> list[torch.Tensor]:
        """Beside arguments elsewhere it is a public one (`plans.ir.PlanTarget`)."""
        leaves = [plain(leaf) for leaf in leaves]
        for leaf in leaves:
            if isinstance(leaf, RemoteTensor):
                return leaf.run_plan(plan, leaves)
        raise InvalidRequest("a plan runs on ordinary tensors here, x.float_precision(), or on shares, x.share(committee)")

    def _needs_value(self, what: str, write: str) -> NoReturn:
        write = write.replace("get()", "float_precision()")
        raise InvalidRequest(f"{what} is not there for a fixed-precision tensor: write {write}")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise InvalidRequest("a fixed-precision tensor cannot be pickled or saved: save x.float_precision()")

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return shown(self)

    __str__ = __repr__

    def _repr_html_(self) -> None:  # type: ignore[override]
        return None  # a notebook shows the line above


def fix_precision(value: Any, bits: int = BITS, **words: Any) -> Any:
    """The tensor in fixed point, with 18 bits after the point: each element rounded to the nearest multiple of 2**-18.

    Operations on it are those of the secure engine; `share` puts it on secret shares, `float_precision` gives an ordinary tensor
    back; all are detached from autograd. Whole numbers become real ones of torch's default dtype. What is on shares is in fixed
    precision already, and comes back as it is. Raises `InvalidRequest` for other `bits`, `ExecutionFailed` for an element that
    is not finite, or 2**45 or larger.
    """
    check_bits(bits, words)
    if not isinstance(value, torch.Tensor):
        raise InvalidRequest(f"fix_precision takes a tensor, not {type(value).__name__}; torch.as_tensor makes tensors")
    if hasattr(type(value), "_rank"):  # a tensor of ours
        own: Any = value
        return own.fix_precision()
    dtype = value.dtype if value.is_floating_point() else torch.get_default_dtype()
    return adopted(words_of(value, BITS), dtype)


def check_bits(bits: int, words: Mapping[str, Any]) -> None:
    """Refuse what PySyft had and the engine has not, and say what there is."""
    for name in words:
        if name in ("precision_fractional", "base", "dtype", "kappa"):
            raise InvalidRequest(
                f"{name}: fixed precision is binary here, {BITS} bits after the point (5 decimal digits): leave it out"
            )
        raise InvalidRequest(f"fix_precision has no argument {name!r}; it takes bits={BITS} alone")
    if bits != BITS or isinstance(bits, bool):
        raise InvalidRequest(
            f"bits is {bits!r}: the engine computes with {BITS} bits after the point, and with nothing else; leave it out. For"
            " smaller errors scale the data up, for larger numbers down"
        )


def words_of(value: torch.Tensor, bits: int | None = None) -> torch.Tensor:
    """The value as ring elements, int64. `ExecutionFailed` where it holds what does not fit, which may be said of one's own
    values."""
    bits = fraction_bits(value.dtype) if bits is None else bits
    try:
        return fixed.encode(value, bits, 1).cpu()
    except ExecutionFailed:
        fits = f"finite and smaller in size than 2**{63 - bits}"
        raise ExecutionFailed(f"an element of the value cannot be shared: each must be {fits}; scale the value down") from None


def adopted(words: torch.Tensor, dtype: torch.dtype) -> FixedTensor:
    """The fixed-precision tensor of these ring elements (int64), which are its own from now on."""
    made = ObjectId(HERE.new_id())
    HERE.values[made] = Value(Shared(words.contiguous().numpy().view(np.uint64)), dtype)
    return _wrap(HERE.shapes.meta(words.shape, dtype), Handle(HERE, made))


def plain(value: Any) -> Any:
    """A fixed-precision tensor as an ordinary one; anything else as it is."""
    return value.float_precision() if isinstance(value, FixedTensor) else value


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Here:
    name: str = "this process"
    id: str = ""


class Here:
    """Where they are: the outbox (`dispatch.Outbox`) of fixed-precision tensors, which does what it is told at once."""

    place = _Here()

    def __init__(self) -> None:
        self.shapes = Shapes()
        self.values: dict[ObjectId, Value] = {}
        self.new_id = itertools.count(1).__next__

    def emit(self, command: Command, tensors: Sequence[TensorFrame], place: Origin, what: str) -> None:
        """Do an operation of the engine, in the clear. Raises what it is refused by, with the user's line."""
        inline = [from_frame(frame) for frame in tensors]

        def operand(arg: Any) -> Any:
            if type(arg) is Ref:
                return self.values[ObjectId(int(arg))]
            return inline[arg] if type(arg) is Inline else arg

        args, kwargs = each(operand, list(command.args)), each(operand, command.kwargs)
        try:
            results = completed(Call(command.op, args, kwargs, most=UNLIMITED).run(Plain()))
        except GridError as error:
            raise type(error)(f"{error.message} (at {describe(place)})", **error.details) from None
        for object_id, result in zip(command.outputs, results, strict=True):
            if result is not None:
                self.values[object_id] = completed(result.numeric(Plain()))

    def whole(self, tensor: FixedTensor) -> torch.Tensor:
        """A copy of the whole numbers, int64."""
        object_id = ObjectId(int(tensor._handle.ref))  # makes a transpose that nothing has used yet
        value = self.values.get(object_id)
        if value is None:
            raise InvalidRequest("the engine does not compute this result of the operation")
        return torch.from_numpy(np.array(value.shared.parts[0]).view(np.int64))

    def free(self, object_id: ObjectId) -> None:
        """Forget a value."""
        self.values.pop(object_id, None)

    def wait(self, work: Any) -> NoReturn:
        raise NotImplementedError

    read = move = run_plan = wait  # nothing here is waited for: the tensors' methods say so first


HERE: Any = Here()


def _plain_unless_real(made: Any) -> Any:
    if isinstance(made, FixedTensor) and not made.is_floating_point():
        return fixed.decode(HERE.whole(made), 0, made.dtype)
    return made


def _wrap(meta: Meta, handle: Handle, offset: int = 0) -> FixedTensor:
    tensor: FixedTensor = torch.Tensor._make_wrapper_subclass(
        FixedTensor, meta.shape, strides=meta.stride, storage_offset=offset, dtype=meta.dtype, device=CPU
    )
    torch._C._set_throw_on_mutable_data_ptr(tensor)  # else torch's own C functions would hand out a null pointer
    tensor._handle = handle
    tensor._meta = meta
    return tensor


_dispatch = Dispatcher(
    FixedTensor,
    _wrap,
    MappingProxyType(
        {func: text.replace(USE_GET, USE_FLOAT).replace("get()", "float_precision()") for func, text in NEEDS_VALUES.items()}
    ),
)
