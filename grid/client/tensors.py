"""Remote tensors: torch tensors whose data is at a node.

A `RemoteTensor` has a shape, strides, a dtype and a place in autograd here, and its values there. Each operation on it becomes
a command (dispatch.py) and returns at once with another remote tensor; nothing waits until `get()`. So modules, autograd and
optimizers work unmodified. What would need the values (`item()`, `if x > 0`, `numpy()`, pickling) raises and says what to write.

A remote value lives as long as a tensor here stands for it: reference counting frees it, with or without the collector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch

from grid.client.chain import PLACED, outranked, shared_at
from grid.client.dispatch import Dispatcher, Handle, Outbox, Place
from grid.client.shapes import CPU, Meta
from grid.display import html, printable
from grid.errors import InvalidRequest
from grid.ids import ObjectId
from grid.plans.ir import PlanTarget
from grid.wire.messages import Ref


class RemoteTensor(torch.Tensor):
    """A torch tensor whose data is at `location`. Made by `node.send`, datasets, and operations on other remote tensors."""

    __slots__ = ("_handle", "_meta")
    _handle: Handle
    _meta: Meta
    _rank = PLACED
    _source: str = ""
    """`DATASET.part` where it is a part of a dataset, whose rows are its first dimension."""
    _mock: Callable[[], torch.Tensor | None] | None = None
    """Made-up values such as these, where it is a part of a dataset."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if len(types) > 1 and outranked(PLACED, types):
            return NotImplemented
        return _dispatch(func, args, kwargs or {})

    @property
    def location(self) -> Place:
        """The node that has the values."""
        return self._handle.outbox.place

    def get(self, *, timeout: float | None = None) -> Any:
        """A copy of the values as an ordinary tensor; the remote value stays. Detached from autograd.

        In an asynchronous client, an awaitable of that. `timeout` in seconds. Raises `ReleaseDenied` where the owner's rules do
        not let the value leave, and the error of any earlier operation that failed at this node.
        """
        outbox = self._handle.outbox
        return outbox.wait(outbox.read(self, timeout))

    def move(self, to: Place, *, timeout: float | None = None) -> Any:
        """A new remote tensor at the node `to`, with these values; this one stays. The values go from node to node.

        In an asynchronous client, an awaitable of that. Moving data of a dataset needs its owner's leave: `ReleaseDenied`.
        """
        outbox = self._handle.outbox
        return outbox.wait(outbox.move(self, to, timeout))

    def share(self, *places: Any, **words: Any) -> Any:
        """This value on secret shares at three nodes; they are made where it is, if its owner's rules allow.

        `x.share(committee)`, or the nodes or their names, `x.share(alice, bob, carol)`: then at the latest committee of these
        that this client has opened, or a new one; in an asynchronous client, an awaitable.
        """
        return shared_at(self, places, words, self._handle.outbox.place)

    def fix_precision(self, *_: Any, **__: Any) -> Any:
        """It becomes fixed point where it is shared."""
        raise InvalidRequest("a value at a node becomes fixed point when it is shared: x.share(alice, bob, carol)")

    fix_prec = fix_precision

    def float_precision(self) -> Any:
        """It is no fixed-precision tensor."""
        raise InvalidRequest("a value at a node is an ordinary tensor there: x.get() copies it, if its owner's rules allow")

    float_prec = float_precision

    def run_plan(self, plan: Any, leaves: Sequence[Any]) -> list[torch.Tensor]:
        """Call a plan where this tensor is (`plans.ir.PlanTarget`)."""
        return self._handle.outbox.run_plan(plan, leaves)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Never shows values: they are not here."""
        facts = [f"{name}={value}" for name, value in self._facts()]
        kind = "Parameter containing: " if isinstance(self, torch.nn.Parameter) else ""
        return f"{kind}RemoteTensor({', '.join(facts)})"

    def _repr_html_(self) -> str:
        name = "remote parameter" if isinstance(self, torch.nn.Parameter) else "remote tensor"
        note = "The values are there. get() asks for a copy, which its owner's rules allow or refuse."
        facts = [(fact, value.strip("'")) for fact, value in self._facts()[3:]]
        return html(f"{tuple(self.shape)} {_short(self.dtype)}", f"{name} at {self.location.name}", facts=facts, note=note)

    def _facts(self) -> list[tuple[str, str]]:
        """What is known here: shape, dtype, place, and what there is besides."""
        facts = [("shape", str(tuple(self.shape))), ("dtype", _short(self.dtype)), ("at", repr(self.location.name))]
        if self._source:
            facts += [("of", repr(printable(self._source))), ("rows", "'dimension 0'")]
        if self.requires_grad:
            facts.append(("requires_grad", "True"))
        return facts

    def __format__(self, spec: str) -> str:
        if spec:
            self._needs_value(f"the format {spec!r}", "x.get()")
        return repr(self)

    # Copies. A deep copy is a new value at the node; a shallow one shares the value, as torch's own copies share memory.

    def __copy__(self) -> RemoteTensor:
        return _with_flags(self, self.detach())

    def __deepcopy__(self, memo: dict[int, Any]) -> RemoteTensor:
        if id(self) in memo:
            return memo[id(self)]  # type: ignore[no-any-return]
        if not self.is_leaf:
            raise InvalidRequest("a result of operations that autograd follows cannot be deep-copied (nor in torch); use clone()")
        copied = _with_flags(self, self.detach().clone())
        if self.grad is not None:
            copied.grad = self.grad.__deepcopy__(memo) if isinstance(self.grad, RemoteTensor) else None
        memo[id(self)] = copied
        return copied

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise InvalidRequest(
            "a remote tensor cannot be pickled or saved: its values are at a node and belong to this session. Save x.get(), or"
            " model.get().state_dict()"
        )

    @property
    def data(self) -> Any:
        """This value without its history in autograd; it shares the value at the node."""
        return self.detach()

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        if not isinstance(value, RemoteTensor):
            raise InvalidRequest("x.data = local tensor: use x.copy_(value) under torch.no_grad(), or node.send(value)")
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self._handle, self._meta = value._handle, value._meta

    # What needs the values. Each says what to write instead.

    def _needs_value(self, what: str, write: str) -> NoReturn:
        raise InvalidRequest(
            f"{what} needs the value, which is at a node. Write {write}; get() copies it if its owner's rules allow"
        )

    def item(self) -> NoReturn:
        self._needs_value("item()", "x.get().item()")

    def tolist(self) -> NoReturn:
        self._needs_value("tolist()", "x.get().tolist()")

    def numpy(self, *, force: bool = False) -> NoReturn:
        self._needs_value("numpy()", "x.get().numpy()")

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._needs_value("a numpy array", "x.get().numpy()")

    def __array_ufunc__(self, function: Any, *args: Any, **kwargs: Any) -> NoReturn:
        name = getattr(function, "__name__", "a numpy function")
        self._needs_value(f"numpy's {name}", "torch's functions, with torch.as_tensor(array) for an array, or x.get().numpy()")

    def __bool__(self) -> NoReturn:
        self._needs_value("a condition", "x.get(), or torch.where for a choice element by element")

    def __int__(self) -> NoReturn:
        self._needs_value("int()", "int(x.get())")

    def __float__(self) -> NoReturn:
        self._needs_value("float()", "float(x.get())")

    def __complex__(self) -> NoReturn:
        self._needs_value("complex()", "complex(x.get())")

    def __index__(self) -> NoReturn:
        self._needs_value("an index", "int(x.get())")

    def __contains__(self, value: Any) -> NoReturn:
        self._needs_value("`in`", "(x == value).sum().get()")

    # These reach for the memory behind the tensor, past the dispatcher. There is none here, and torch does not look.

    def apply_(self, *args: Any) -> NoReturn:
        self._needs_value("apply_()", "operations on whole tensors such as torch.where")

    def map_(self, *args: Any) -> NoReturn:
        self._needs_value("map_()", "operations on whole tensors such as torch.where")

    def map2_(self, *args: Any) -> NoReturn:
        self._needs_value("map2_()", "operations on whole tensors such as torch.where")

    def data_ptr(self) -> NoReturn:
        self._needs_value("data_ptr()", "x.get().data_ptr()")

    def untyped_storage(self) -> NoReturn:
        self._needs_value("untyped_storage()", "x.get().untyped_storage()")

    def storage(self) -> NoReturn:
        self._needs_value("storage()", "x.get().storage()")

    def pin_memory(self, *args: Any) -> NoReturn:
        self._needs_value("pin_memory()", "x.get().pin_memory()")

    def share_memory_(self) -> NoReturn:
        self._needs_value("share_memory_()", "x.get().share_memory_()")

    def __dlpack__(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._needs_value("DLPack", "x.get() and pass that on")

    def __dlpack_device__(self) -> NoReturn:
        self._needs_value("DLPack", "x.get() and pass that on")

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As `torch.Tensor.to`, for dtypes and memory formats; `InvalidRequest` for a device, which is the node's choice."""
        device = kwargs.get("device", args[0] if args else None)
        if isinstance(device, (str, int, torch.device)) and torch.device(device) != CPU:
            raise InvalidRequest(f"to({str(device)!r}): a node chooses its own devices; leave the call out")
        return super().to(*args, **kwargs)

    def cpu(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._needs_value("cpu()", "x.get()")

    def cuda(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise InvalidRequest("cuda(): a node chooses its own devices; leave the call out")


# Tensors have a metaclass of their own, so the abstract class is told about this one rather than inherited.
PlanTarget.register(RemoteTensor)


def wrap(meta: Meta, handle: Handle, offset: int = 0) -> RemoteTensor:
    """The tensor of geometry `meta` that stands for `handle`; `offset`, where its view starts in its base, in elements."""
    tensor: RemoteTensor = torch.Tensor._make_wrapper_subclass(
        RemoteTensor, meta.shape, strides=meta.stride, storage_offset=offset, dtype=meta.dtype, device=CPU
    )
    torch._C._set_throw_on_mutable_data_ptr(tensor)  # else torch's own C functions would hand out a null pointer
    tensor._handle = handle
    tensor._meta = meta
    return tensor


def adopt(
    outbox: Outbox, object_id: ObjectId, shape: Sequence[int], dtype: torch.dtype, stride: Sequence[int] | None = None
) -> RemoteTensor:
    """The tensor, row-major without `stride`, that stands for an object which is or soon will be in the session of `outbox`."""
    return wrap(outbox.shapes.meta(shape, dtype, stride), Handle(outbox, object_id))


def reference(tensor: torch.Tensor, outbox: Outbox) -> Ref | None:
    """How `tensor` is named in the session of `outbox`; None where it is not remote. Raises if it is in another session."""
    if not isinstance(tensor, RemoteTensor):
        return None
    if tensor._handle.outbox is not outbox:
        raise InvalidRequest(
            f"one tensor is at {tensor.location.name}, another in a session at {outbox.place.name}; all operands of one call"
            " must be at one node and of one client. Use x.move(node) where the owner's rules allow it"
        )
    return tensor._handle.ref


def _with_flags(source: RemoteTensor, target: torch.Tensor) -> RemoteTensor:
    """Let `target` be what `source` is for autograd and modules: a leaf that wants gradients, a parameter."""
    assert isinstance(target, RemoteTensor)
    if source.requires_grad:
        target.requires_grad_()
    if isinstance(source, torch.nn.Parameter):
        target._is_param = True
    return target


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_dispatch = Dispatcher(RemoteTensor, wrap)
