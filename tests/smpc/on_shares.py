"""torch tensors whose operations run on shares in this process, as those of a committee's client do on the grid.

`on_shares(value, parties)` is one; `revealed` opens it. With three parties each operation is run by all of them, in lockstep;
with one it is the plain protocol, which rounds at random as they do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from grid.client.rewriting import TWINS, trains
from grid.smpc.interpreter import Call, Value, fraction_bits
from grid.smpc.local import run_parties
from grid.smpc.numbers import encode
from grid.smpc.party import Operations, Party
from grid.smpc.plain import Plain, completed
from grid.smpc.protocol import Protocol
from grid.smpc.replicated.protocol import Replicated
from grid.smpc.shares import Shared
from grid.tensors.fixed import decode
from grid.tensors.ops import OPS, portable
from grid.wire.messages import DType, MemoryFormat

MOST = 1 << 18
aten: Any = torch.ops.aten


class OnShares(torch.Tensor):
    """A tensor of which each party has a `Value`, or None where the operation gives none."""

    values: list[Value]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func in (aten.detach.default, aten.alias.default):
            return _wrapped(args[0].values, args[0])
        if func in TWINS:
            args[0].values = cls.__torch_dispatch__(TWINS[func], types, args, kwargs).values
            return args[0]
        if trains(func, args):
            *results, mean, variance = cls.__torch_dispatch__(aten._native_batch_norm_legit_functional.default, types, args)
            args[3].values, args[4].values = mean.values, variance.values
            return tuple(results)
        if str(func) not in OPS:
            return func.decompose(*args, **(kwargs or {}))
        op, args, kwargs = portable(func, args, kwargs or {})
        kwargs = {name: value for name, value in kwargs.items() if name not in ("device", "layout", "pin_memory")}
        operands = [one for arg in args for one in (arg if isinstance(arg, list) else [arg])]
        parties = len(next(one for one in operands if isinstance(one, cls)).values)

        async def run(protocol: Protocol, rank: int) -> list[Value]:
            given = [_held(arg, rank) for arg in args]
            call = Call(op.name, given, {name: _held(arg, rank) for name, arg in kwargs.items()}, most=MOST)
            metas.append(call.results)
            return await call.run(protocol)

        metas: list[list[torch.Tensor]] = []
        if parties == 1:
            results = [completed(run(Plain(rounding=np.random.default_rng(0)), 0))]
        else:
            results = run_parties(functools.partial(_at, run)).results
        made = [_wrapped(list(held), meta) for *held, meta in zip(*results, metas[0], strict=True)]
        for place, asked in enumerate(kwargs.get("output_mask") or args[-1:][0] if "output_mask" in op.index else ()):
            if not asked:
                made.insert(place, None)
        if len(func._schema.returns) == 1:
            return made if func._schema.returns[0].type.kind() == "ListType" else made[0]
        return tuple(made)


async def _at(run: Callable[..., Any], party: Party) -> Any:
    return await run(Replicated(party, Operations(0, 1 << 28)), party.rank)  # as many operations as a client's request has


def _geometry(arg: Any) -> Any:
    return torch.empty(arg.shape, dtype=arg.dtype, device="meta") if isinstance(arg, OnShares) else arg


def _held(arg: Any, rank: int) -> Any:
    if isinstance(arg, OnShares):
        return arg.values[rank]
    if isinstance(arg, list):
        return [_held(one, rank) for one in arg]
    return arg if not isinstance(arg, DType | MemoryFormat) else type(arg)(arg)


def _wrapped(values: list[Any], like: torch.Tensor) -> OnShares:
    made: OnShares = torch.Tensor._make_wrapper_subclass(
        OnShares, like.shape, strides=like.stride(), dtype=like.dtype, device="cpu"
    )
    made.values = values
    return made


def on_shares(value: torch.Tensor, parties: int) -> OnShares:
    """The value on shares of 1 or 3 parties."""
    words = encode(value).copy()
    if parties == 1:
        return _wrapped([Value(Shared(words), value.dtype)], value.contiguous())
    first, second = np.random.default_rng(1).integers(0, 1 << 64, (2, *words.shape), np.uint64)
    parts = (first, second, words - first - second)
    return _wrapped([Value(Shared(parts[k], parts[(k + 1) % 3]), value.dtype) for k in range(3)], value.contiguous())


def revealed(tensor: OnShares) -> torch.Tensor:
    """The value."""
    values = tensor.values
    if len(values) == 1:
        words = completed(values[0].numeric(Plain())).shared.parts[0]
    else:

        async def opened(party: Party) -> Any:
            protocol = Replicated(party)
            return await protocol.open((await values[party.rank].numeric(protocol)).shared)

        words = run_parties(opened).results[0]
    ring = torch.from_numpy(np.array(words).view(np.int64))
    return decode(ring, fraction_bits(tensor.dtype), tensor.dtype).reshape(tensor.shape)
