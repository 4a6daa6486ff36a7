"""Mutated plans, decoded and dry-run in a process whose memory is limited.

    python tests/plans/fuzz_plans.py SEED COUNT        prints {"rejected": ..., "refused": ..., "accepted": ...}

Anything but `PlanRejected` from decoding, or `PlanRejected` and `InvalidRequest` from the dry run, ends it with a traceback; so
does an allocation beyond `ROOM`, since the process may not have more memory than it had at the start and that.
"""

from __future__ import annotations

import json
import random
import resource
import sys
from pathlib import Path
from typing import Any

import msgpack
import torch

from grid.errors import InvalidRequest, PlanRejected
from grid.plans.ir import Plan, decode
from grid.plans.shapes import check_limits
from grid.tensors.buffers import torch_dtype
from grid.tensors.ops import OPS, elements
from grid.wire.args import pack_special, unpack_special
from grid.wire.messages import DType, Inline, Ref

ROOM = 128 << 20
"""Bytes that the process may grow by in all. A plan here has less than 32 KiB."""

LIMITS = {"max_elements": 1 << 20, "max_bytes": 1 << 26, "max_flops": 10**9, "max_steps": 1000}

SEEDS = [path.read_bytes() for path in sorted((Path(__file__).parent / "golden").glob("*.plan"))]


def own_memory() -> int:
    """Bytes of address space in use."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def mutated_bytes(draw: random.Random, raw: bytes) -> bytes:
    data = bytearray(raw)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(data)) if data else 0
        match draw.randrange(5):
            case 0:
                data[at : at + 1] = bytes([draw.randrange(256)])
            case 1:
                del data[at : at + draw.randint(1, 8)]
            case 2:
                data[at:at] = draw.randbytes(draw.randint(1, 8))
            case 3:
                data[at:at] = data[at : at + 16]
            case 4:  # a claim of a huge list, text, map or binary
                data[at : at + 5] = bytes([draw.choice([0xDB, 0xDD, 0xDF, 0xC6, 0xC9])]) + b"\xff" * 4
    return bytes(data)


def any_value(draw: random.Random, depth: int = 3) -> Any:
    if depth and draw.random() < 0.3:
        return [any_value(draw, depth - 1) for _ in range(draw.randint(0, 3))]
    small = draw.randint(-3, 40)
    large = draw.choice([1 << 20, 1 << 31, 1 << 40, (1 << 63) - 1, -(1 << 63), (1 << 64) - 1])
    text = draw.choice([*OPS, "aten.nonzero.default", "aten.__class__.__mro__", "sym.mul", "n0", "f4", "leaf", "os.system"])
    special = draw.choice([DType("f4"), DType("zz"), Inline(0), Ref(large & 0xFFFF)])
    options = [None, True, small, small, large, draw.uniform(-9, 9), float("nan"), text, b"12345678", Ref(abs(small)), special]
    return draw.choice(options)


def mutated_structure(draw: random.Random, raw: bytes) -> bytes:
    rows = msgpack.unpackb(raw, ext_hook=unpack_special)
    for _ in range(draw.randint(1, 3)):
        target: Any = rows
        while True:
            at = draw.randrange(len(target))
            inner = target[at]
            if not (isinstance(inner, list) and inner) or draw.random() < 0.15:
                break
            target = inner
        match draw.randrange(6):
            case 0 | 1 | 2:
                target[at] = any_value(draw)
            case 3 if len(target) > 1:
                del target[at]
            case 4:
                target.insert(at, target[at])
            case _:  # another step's operation, arguments or results
                steps = rows[8]
                if isinstance(steps, list) and steps and all(isinstance(step, list) and len(step) == 4 for step in steps):
                    part = draw.randrange(4)
                    draw.choice(steps)[part] = draw.choice(steps)[part]
    try:
        return bytes(msgpack.Packer(default=pack_special, strict_types=True).pack(rows))
    except (OverflowError, TypeError, ValueError):
        return b""


def plausible(draw: random.Random, raw: bytes) -> bytes:
    """Steps with other numbers, values and operations in their places: most of these can be decoded."""
    rows = msgpack.unpackb(raw, ext_hook=unpack_special)

    def other(arg: Any) -> Any:
        if isinstance(arg, list):
            return [other(item) if draw.random() < 0.5 else item for item in arg]
        if type(arg) is Ref:
            return Ref(draw.randrange(int(arg) + 1))
        if type(arg) is int:
            return draw.choice([0, 1, -1, 2, 7, 1 << 20, 1 << 31, 1 << 40, -(1 << 40), (1 << 62)])
        return draw.choice([arg, draw.uniform(-2, 2)]) if type(arg) is float else arg

    for _ in range(draw.randint(1, 3)):
        step = draw.choice(rows[8])
        if draw.random() < 0.2:
            step[0] = draw.choice([*OPS, *(step[0] for step in rows[8])])
        else:
            step[1] = other(step[1])
    return bytes(msgpack.Packer(default=pack_special, strict_types=True).pack(rows))


MUTATIONS = (mutated_bytes, mutated_structure, plausible, plausible)


def dry(draw: random.Random, plan: Plan) -> str:
    """Read the plan as its owner would, and ask what it would cost, for some batch."""
    assert plan.code and plan.id
    rows = draw.choice([0, 1, 5, 1 << 12])
    shapes = [tuple(rows if isinstance(size, str) else size for size in spec.sizes) for spec in plan.inputs]
    if any(elements(shape) > 1 << 40 for shape in shapes):
        return "refused"  # nobody has such an input
    pairs = zip(shapes, plan.inputs, strict=True)
    inputs = [torch.empty(shape, dtype=torch_dtype(spec.dtype), device="meta") for shape, spec in pairs]
    try:
        check_limits(plan, inputs, **LIMITS)
    except (PlanRejected, InvalidRequest):
        return "refused"
    return "accepted"


def main(seed: int, count: int) -> None:
    draw = random.Random(seed)
    for raw in SEEDS:  # what is loaded once is loaded now
        dry(draw, decode(raw))
    before = own_memory()
    resource.setrlimit(resource.RLIMIT_AS, (before + ROOM, before + ROOM))
    found = {"rejected": 0, "refused": 0, "accepted": 0}
    for _ in range(count):
        raw = draw.choice(SEEDS[:3] if draw.random() < 0.9 else SEEDS)
        data = draw.choice(MUTATIONS)(draw, raw)
        try:
            plan = decode(data)
        except PlanRejected:
            found["rejected"] += 1
        else:
            assert plan.encoding == data
            found[dry(draw, plan)] += 1
    print(json.dumps({**found, "grew": own_memory() - before}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
