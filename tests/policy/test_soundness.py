"""The claim of the label system, played out on random programs (docs/labels.md), and on mutants of it, which must be caught.

For tensors of a random program: permuting a dataset's rows inside their cells permutes the tensor along its Order and
changes nothing else; CONST is constant; replacing a row changes nothing where it is not involved, and its own slice alone
where nothing is to blame. At the end all of this once more for every value, for writes through shared memory.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest
from playing import violations
from programs import Program, replay, rows
from templates import TEMPLATES
from torch import Tensor

from grid.policy import labels as labels_module
from grid.policy.labels import Labels
from grid.policy.memory import LabelledMemory
from grid.tensors import bounds, meeting, rules_elementwise, rules_index, rules_layers, rules_views
from grid.tensors import rows as rows_module
from grid.tensors.calls import Call
from grid.tensors.rows import CONST, Choice, Dim, Form, Order, Space, plain_dims
from grid.tensors.rules import ROW_RULES, Rule

STEPS = 14
PROGRAMS = 300


@pytest.fixture(autouse=True)
def no_index_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let indices that do not exist reach the kernels, so that writes fail half-way: the types must not depend on the check."""
    examine = bounds.examine
    monkeypatch.setattr(bounds, "examine", lambda bound: None if bound.op.bounds in ("index", "dim_index") else examine(bound))


def grow(seed: int, rules: Mapping[str, Rule] = ROW_RULES) -> Program:
    """The random program of a seed."""
    program = Program(seed, rules)
    templates, weights = zip(*TEMPLATES, strict=True)
    for _ in range(STEPS):
        program.random.choices(templates, weights)[0](program)
    return program


# ---------------------------------------------------------------- one program


def found_wrong(program: Program, seed: int) -> Iterator[str]:
    """What breaks the claim, for the values after each step that changed them, and for all values at the end."""

    def run(data: dict[str, list[Tensor]]) -> list[Tensor] | None:
        found = replay(program, data)
        return None if found is None else [value for _, value in found[0]] + found[1]

    values = run(rows(seed))
    if values is not None:
        kinds = [kind for _, _, kind in program.log] + [program.labels.type_of(value) for value in program.values]
        yield from violations(list(zip(values, kinds, strict=True)), run, seed)


def broken(program: Program) -> str:
    """The first violation that other values show, too; two equal sums may differ in the last place once by accident."""
    found = next(found_wrong(program, program.seed), "")
    if found and all(next(found_wrong(program, program.seed + other), "") for other in (1000, 2000)):
        return found
    return ""


# ---------------------------------------------------------------- the tests


@pytest.mark.timeout(300)
def test_random_programs_keep_the_claim() -> None:
    """And they reach every rule, with rows, often enough to say something."""
    reached: Counter[str] = Counter()
    shown: Counter[str] = Counter()
    for seed in range(PROGRAMS):
        program = grow(seed)
        found = broken(program)
        assert not found, f"seed {seed}: {found}\n" + "\n".join(str(step) for step in program.steps)
        reached += program.reached
        shown += program.shown
    without_operands = {"constant", "sequence", "random", "draw", "fill"}
    assert {name for name in ROW_RULES if reached[name] < 10} <= without_operands, reached
    never_labelled = {name for name in ROW_RULES if not shown[name]}
    assert never_labelled <= without_operands, shown


Mutate = Callable[[pytest.MonkeyPatch], Mapping[str, Rule]]


def free_joins_order(patch: pytest.MonkeyPatch) -> Mapping[str, Rule]:
    def join(a: object, b: object) -> object:
        return a if isinstance(a, Order) or b is CONST else b

    patch.setattr(meeting, "join_tag", join)
    return ROW_RULES


def orders_join(patch: pytest.MonkeyPatch) -> Mapping[str, Rule]:
    right = meeting.join_tag
    patch.setattr(meeting, "join_tag", lambda a, b: a if isinstance(a, Order) and isinstance(b, Order) else right(a, b))
    return ROW_RULES


def aliases_keep_their_labels(patch: pytest.MonkeyPatch) -> Mapping[str, Rule]:
    patch.setattr(LabelledMemory, "_weakened", lambda self, other, written, step: other)
    return ROW_RULES


def failed_writes_keep_their_labels(patch: pytest.MonkeyPatch) -> Mapping[str, Rule]:
    patch.setattr(LabelledMemory, "_give_up", lambda self, storage, pending: setattr(storage, "pending", None))
    return ROW_RULES


def flip_and_cumsum_elementwise(patch: pytest.MonkeyPatch) -> Mapping[str, Rule]:
    def rule(call: Call) -> list[Form]:
        return rules_elementwise.elementwise(call) if call.base in ("flip", "cumsum") else rules_elementwise.along(call)

    return {**ROW_RULES, "along": rule}


def softmax_keeps_blame_empty(patch: pytest.MonkeyPatch) -> Mapping[str, Rule]:
    def rule(call: Call) -> list[Form]:
        return rules_elementwise.elementwise(call) if "softmax" in call.base else rules_elementwise.along(call)

    return {**ROW_RULES, "along": rule}


def cells_not_refined(patch: pytest.MonkeyPatch) -> Mapping[str, Rule]:
    patch.setattr(Space, "refine", lambda self, a, b: a)
    return ROW_RULES


def rows_may_repeat(patch: pytest.MonkeyPatch) -> Mapping[str, Rule]:
    def order(self: Space, dataset: str, index: np.ndarray, choice: Choice = Choice.POSITIONS) -> Order:
        key = (dataset, choice, np.asarray(index, np.int32).tobytes())
        if key not in self._orders:
            kept.append(Order(self, dataset, np.asarray(index, np.int32), choice))
            self._orders[key] = kept[-1]
        return self._orders[key]

    kept: list[Order] = []
    patch.setattr(Space, "order", order)
    return ROW_RULES


def views_cut_orders(patch: pytest.MonkeyPatch) -> Mapping[str, Rule]:
    patch.setattr(meeting, "_without_rows", lambda dims, shape: plain_dims(shape))
    return ROW_RULES


def reductions_without_rows_are_not_joined(patch: pytest.MonkeyPatch) -> Mapping[str, Rule]:
    """Saved means are taken on trust: a one-hot 1/std picks a row out of the gradient of a weight."""
    right = rules_layers.lead

    def lead(call: Call, count: int, *names: str) -> list[Dim]:
        return right(call, count, *[name for name in names if name not in ("mean", "rstd")])

    patch.setattr(rules_layers, "lead", lead)
    return ROW_RULES


def batch_norm_without_hidden_writes(patch: pytest.MonkeyPatch) -> Mapping[str, Rule]:
    right = Labels._writes
    patch.setattr(Labels, "_writes", lambda self, call, made: () if "batch_norm" in call.base else right(self, call, made))
    return ROW_RULES


def index_values_from_the_cache(patch: pytest.MonkeyPatch) -> Mapping[str, Rule]:
    """An index read once stands for all that have its form."""

    def rule(call: Call) -> list[Form]:
        made = rules_index.index_select(call)
        call.volatile = False
        return made

    return {**ROW_RULES, "index_select": rule}


def gradients_of_slices_go_anywhere(patch: pytest.MonkeyPatch) -> Mapping[str, Rule]:
    patch.setattr(rules_views.np, "array_equal", lambda a, b: True)
    return ROW_RULES


MUTANTS: list[Mutate] = [
    free_joins_order,
    orders_join,
    aliases_keep_their_labels,
    failed_writes_keep_their_labels,
    flip_and_cumsum_elementwise,
    softmax_keeps_blame_empty,
    cells_not_refined,
    rows_may_repeat,
    views_cut_orders,
    reductions_without_rows_are_not_joined,
    batch_norm_without_hidden_writes,
    index_values_from_the_cache,
    gradients_of_slices_go_anywhere,
]


@pytest.mark.parametrize("mutate", MUTANTS, ids=lambda mutate: mutate.__name__)
def test_a_wrong_rule_is_caught(mutate: Mutate, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = mutate(monkeypatch)
    for seed in range(2 * PROGRAMS):
        with contextlib.suppress(rows_module.QuotaExceeded):
            if broken(grow(seed, rules)):
                return
    pytest.fail("no random program shows that this is wrong")


def test_labels_module_checks_indices_by_default() -> None:
    """The fixture above patches what `labels` really calls."""
    assert labels_module.bounds is bounds
