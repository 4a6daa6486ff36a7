"""For which sizes a program is right.

While a function is recorded, PyTorch notes what it took for granted about free dimensions: guards such as `n < 16`, where a
kernel was chosen, or `n > 4` from an `if` in the function. For each guard that some size breaks, the function is recorded
again at that size. If it comes to the same program, or to one with the same results, the guard did not matter. Otherwise
the program keeps to the sizes around the example for which the guard holds.

A size for which the function itself raises does not matter either: the program raises there, too, when its kernels do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import sympy
import torch
from torch import Tensor

from grid.errors import GridError, InvalidRequest
from grid.plans.capture import Captured, Leaf
from grid.plans.checks import compute_size, resolve
from grid.plans.interpret import run
from grid.plans.program import SYM_OPS, Program, Range, Step, with_frees
from grid.tensors.buffers import torch_dtype
from grid.wire.messages import Ref

PROBES = (*range(1, 10), *(power + near for power in (16, 32, 64, 128, 256, 1024, 4096, 65536) for near in (-1, 0, 1)))
"""Sizes at which guards are tried."""

MAX_PROBES = 8
LARGEST = 1 << 40
"""Stands for any large size."""

MAX_COMPARED_ELEMENTS = 1 << 22
"""Inputs of a comparison by results have no more elements; where they would, results count as different."""

Shapes = Sequence[tuple[int, ...]]


def limited(
    program: Program, captured: Captured, leaves: Sequence[Leaf], fixed_program: Callable[[Shapes], Program]
) -> Program:
    """The same program with ranges for its free dimensions, where it needs some."""
    names, example = _dimensions(program, captured, leaves)
    guards = list(dict.fromkeys(captured.guards()))
    verdicts: dict[tuple[str, int], bool] = {}
    ranges = dict(zip(dict.fromkeys(names.values()), program.ranges, strict=True))
    for guard in guards:
        for symbol in sorted(guard.free_symbols & names.keys(), key=lambda symbol: names[symbol]):
            size = _breaking(guard, symbol, example)
            probe = (names[symbol], size or 0)
            if size is None or (probe not in verdicts and len(verdicts) >= MAX_PROBES):
                continue
            if probe not in verdicts:
                sizes = {**_sizes(names, example), names[symbol]: size}
                verdicts[probe] = _agrees(program, _shapes(program, sizes), fixed_program)
            if not verdicts[probe]:
                ranges[names[symbol]] = _narrowed(ranges[names[symbol]], guard, symbol, example)
    return replace(program, ranges=tuple(ranges.values()))


def _dimensions(
    program: Program, captured: Captured, leaves: Sequence[Leaf]
) -> tuple[dict[sympy.Symbol, str], dict[sympy.Symbol, int]]:
    """Free dimensions by symbol: their names in the program, and their sizes in the example."""
    names: dict[sympy.Symbol, str] = {}
    example: dict[sympy.Symbol, int] = {}
    for index, spec in enumerate(program.inputs):
        if spec.sizes and isinstance(spec.sizes[0], str):
            symbol = captured.simplify_symbol(index)
            names[symbol] = spec.sizes[0]
            example[symbol] = leaves[index].shape[0]
    return names, example


def _sizes(names: Mapping[sympy.Symbol, str], example: Mapping[sympy.Symbol, int]) -> dict[str, int]:
    return {name: example[symbol] for symbol, name in names.items()}


def _holds(guard: sympy.Basic, sizes: Mapping[sympy.Symbol, int]) -> bool:
    """Whether a guard holds for these sizes; one that cannot be worked out does not."""
    try:
        return bool(guard.xreplace({symbol: sympy.Integer(size) for symbol, size in sizes.items()}) == sympy.true)
    except ZeroDivisionError:
        return False


def _breaking(guard: sympy.Basic, symbol: sympy.Symbol, example: Mapping[sympy.Symbol, int]) -> int | None:
    """A size of one dimension for which a guard does not hold, the others being as in the example."""
    return next((size for size in PROBES if not _holds(guard, {**example, symbol: size})), None)


def _narrowed(span: Range, guard: sympy.Basic, symbol: sympy.Symbol, example: Mapping[sympy.Symbol, int]) -> Range:
    """The sizes in a row around the example for which the guard holds, as far as samples show: near it, and all probes."""
    start = example[symbol]

    def holds(size: int) -> bool:
        return _holds(guard, {**example, symbol: size})

    samples = sorted({0, LARGEST, *PROBES, *range(max(0, start - 3), start + 4)})
    below = [size for size in samples if size < start and not holds(size)]
    above = [size for size in samples if size > start and not holds(size)]
    least = _edge(min(size for size in samples if size > below[-1]), below[-1], holds) if below else 0
    most = _edge(max(size for size in samples if size < above[0]), above[0], holds) if above else None
    limits = [limit for limit in (span.most, most) if limit is not None]
    return Range(max(span.least, least), min(limits) if limits else None)


def _edge(good: int, bad: int, holds: Callable[[int], bool]) -> int:
    """The size next to where a guard that holds at `good` stops holding on the way to `bad`."""
    while abs(good - bad) > 1:
        middle = (good + bad) // 2
        if holds(middle):
            good = middle
        else:
            bad = middle
    return good


def _shapes(program: Program, sizes: Mapping[str, int]) -> list[tuple[int, ...]]:
    return [tuple(sizes[size] if isinstance(size, str) else size for size in spec.sizes) for spec in program.inputs]


def _agrees(program: Program, shapes: Shapes, fixed_program: Callable[[Shapes], Program]) -> bool:
    """Whether the program is what the function comes to at these sizes."""
    try:
        fixed = fixed_program(shapes)
    except GridError:
        return True
    return _same_text(program, shapes, fixed) or _same_results(program, shapes, fixed)


def _same_text(program: Program, shapes: Shapes, fixed: Program) -> bool:
    try:
        one = at_sizes(program, shapes)
        other = at_sizes(fixed, shapes)
    except InvalidRequest:
        return False
    return (one.steps, one.outputs, one.gives, one.constants) == (other.steps, other.outputs, other.gives, other.constants)


def at_sizes(program: Program, shapes: Shapes) -> Program:
    """The program with its sizes worked out where they follow from the inputs, and their steps gone."""
    env: dict[int, Any] = {index: torch.empty(shape, device="meta") for index, shape in enumerate(shapes)}
    numbers: dict[int, Any] = {index: index for index in range(program.first_step_value)}
    known: dict[int, Any] = {}
    steps: list[Step] = []
    for step in program.steps:
        if step.op in SYM_OPS:
            known[step.outputs[0]] = compute_size(step.op, [resolve(arg, {**env, **known}) for arg in step.args])
            continue
        outputs = tuple(len(numbers) + index for index in range(len(step.outputs)))
        args = _with(step.args, numbers, known)
        kwargs = tuple((name, _with(value, numbers, known)) for name, value in step.kwargs)
        numbers.update(zip(step.outputs, outputs, strict=True))
        steps.append(Step(step.op, args, kwargs, outputs))
    outputs = tuple(numbers[output] for output in program.outputs)
    done = with_frees(tuple(steps), outputs, range(len(program.inputs), program.first_step_value))
    return replace(program, steps=done, outputs=outputs)


def _with(arg: Any, numbers: Mapping[int, int], known: Mapping[int, Any]) -> Any:
    if isinstance(arg, tuple):
        return tuple(_with(item, numbers, known) for item in arg)
    if type(arg) is not Ref:
        return arg
    return known[arg] if arg in known else Ref(numbers[arg])


def _same_results(program: Program, shapes: Shapes, fixed: Program) -> bool:
    """Run both on the same made-up inputs. Both failing counts as the same."""
    generator = torch.Generator().manual_seed(0)
    if program.gives != fixed.gives or sum(torch.Size(shape).numel() for shape in shapes) > MAX_COMPARED_ELEMENTS:
        return False
    inputs = [_made_up(spec.dtype, shape, generator) for spec, shape in zip(program.inputs, shapes, strict=True)]
    one, other = _results(program, inputs), _results(fixed, inputs)
    if one is None or other is None:
        return one is other
    return all(_close(a, b) for a, b in zip(one, other, strict=True))


def _results(program: Program, inputs: list[Tensor]) -> list[Tensor] | None:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        try:
            return run(program, inputs)
        except GridError:
            return None


def _made_up(dtype: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Numbers of any kind that are good arguments for most functions: classes and indices 0 and 1, values between 0 and 1."""
    kind = torch_dtype(dtype)
    if kind.is_floating_point:
        return torch.rand(shape, generator=generator, dtype=torch.float64).to(kind)
    return torch.randint(0, 2, shape, generator=generator).to(kind)


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.allclose(one.double(), other.double(), rtol=1e-4, atol=1e-6, equal_nan=True)
