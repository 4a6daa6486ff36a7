"""The gate's rules, one by one, on types that real operations made; the store holds what releases use up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from grid.crypto.keys import SigningKey
from grid.errors import BudgetExhausted, InvalidRequest, QuotaExceeded, ReleaseDenied
from grid.ids import PeerId, PlanId
from grid.policy import blocks
from grid.policy.approvals import Approvals, Content
from grid.policy.claims import RowsClaim, claim_of, merged
from grid.policy.gate import POINTERS, Gate, Guarded, Origin, RateLimits
from grid.policy.labels import Labels
from grid.policy.rules import Policy
from grid.store.base import DatasetState
from grid.store.memory import MemoryStore
from grid.tensors.ops import lookup
from grid.testing.clocks import FakeClock

ROWS = 60
CLIENT = PeerId("a" * 26)
PLAN = PlanId("1" * 64)
OTHER = PlanId("2" * 64)


class Bench:
    """A dataset of 60 rows and 4 columns behind a gate, and one client's labelled memory."""

    def __init__(self, *, limits: RateLimits | None = None, dev: bool = False, **policy: object) -> None:
        self.dev = dev
        self.policy = Policy.from_table({"release": "aggregate", "plans": "any", "max_elements": 1000, **policy})
        self.store = MemoryStore()
        cut = blocks.cut(ROWS, self.policy.min_rows)
        self.store.save("d", DatasetState(ROWS, self.policy.min_rows, cut.astype("<i4").tobytes()))
        self.clock = FakeClock()
        self.limits = limits or RateLimits(1000, 1 << 30)
        self.labels = Labels(strict=True)
        self.x = torch.randn(ROWS, 4)
        self.labels.enter(self.x, self.labels.dataset_type("d", ROWS, self.x.shape))
        self.open_gate()

    def open_gate(self) -> None:
        """A new gate over the same store, as after a restart."""
        self.gate = Gate(
            [Guarded("d", ROWS, self.policy)], store=self.store, clock=self.clock, limits=self.limits, dev=self.dev
        )

    def op(self, name: str, *args: object, **kwargs: object) -> Tensor:
        return self.labels.run(lookup(f"aten.{name}"), list(args), dict(kwargs))[0]

    def total(self, start: int = 0, end: int = ROWS) -> Tensor:
        """Column sums over some rows."""
        return self.op("sum.dim_IntList", self.op("slice.Tensor", self.x, 0, start, end), [0])

    def batch(self, *numbers: int) -> Tensor:
        """Column sums over some blocks."""
        state = self.store.load("d")
        assert state is not None
        rows = blocks.BlockRows(np.frombuffer(state.blocks, "<i4")).of(numbers)
        value = self.x[torch.from_numpy(rows)]
        self.labels.enter(value, self.labels.dataset_type("d", ROWS, value.shape, rows))
        return self.op("sum.dim_IntList", value, [0])

    def release(self, value: Tensor, origin: Origin = POINTERS) -> None:
        claim, elements = claim_of(self.labels.type_of(value)), value.numel()
        self.gate.release(claim, origin, elements=elements, nbytes=4 * elements, client=CLIENT)

    def refused(self, value: Tensor, origin: Origin = POINTERS) -> ReleaseDenied:
        with pytest.raises(ReleaseDenied) as caught:
            self.release(value, origin)
        assert caught.value.details["instead"], "a refusal says what to write instead"
        assert "'d'" in caught.value.message
        return caught.value


def test_an_aggregate_leaves() -> None:
    bench = Bench()
    bench.release(bench.total())
    state = bench.store.load("d")
    assert state is not None and state.elements == 4 and state.partition


def test_rows_do_not() -> None:
    bench = Bench()
    error = bench.refused(bench.op("mul.Scalar", bench.x, 1))
    assert error.details["rule"] == "rows" and ".sum(0)" in error.message


def test_the_step_that_mixed_rows_is_named() -> None:
    bench = Bench()
    flipped = bench.labels.run(lookup("aten.flip.default"), [bench.x, [0]], {}, "command 7")[0]
    error = bench.refused(bench.op("sum.dim_IntList", flipped, [0]))
    assert error.details["rule"] == "mixed" and "command 7" in str(error.details["step"]) and "flip" in error.message


def test_too_few_rows() -> None:
    bench = Bench()
    error = bench.refused(bench.total(0, 9))
    assert error.details["rule"] == "min_rows" and "fewer than min_rows (10) rows" in error.message
    assert error.message == bench.refused(bench.total(20, 22)).message, "a refusal does not count rows"
    bench.release(bench.total(0, 10))


@pytest.mark.parametrize("restart", [False, True], ids=["at once", "after a restart"])
def test_three_releases_of_which_each_pair_differs_by_many_rows(restart: bool) -> None:
    """A = {0} + P, B = {0} + Q, C = P + Q: then A + B - C is twice row 0, though every two sets differ by 21 rows or more."""
    bench = Bench()
    first, second = list(range(1, 26)), list(range(26, 51))
    sets = [[0, *first], [0, *second], [*first, *second]]
    picked = [bench.op("index_select.default", bench.x, 0, bench.labels.enter(torch.tensor(rows))) for rows in sets]
    values = [bench.op("sum.dim_IntList", rows, [0]) for rows in picked]
    bench.release(values[0])
    if restart:
        bench.open_gate()
    error = bench.refused(values[1])
    assert error.details["rule"] == "partition" and "ds.batches" in error.message
    bench.release(values[0])  # what was released once draws nothing new
    with pytest.raises(ReleaseDenied):
        bench.release(values[2])  # rows 1 to 50: of the first set it leaves out row 0 alone


@pytest.mark.parametrize("blocks_first", [True, False])
def test_releases_drawn_by_blocks_and_by_positions_do_not_follow_each_other(blocks_first: bool) -> None:
    """Whether their partition fits would tell which rows a block holds, so nobody looks."""
    bench = Bench()
    batches = [bench.batch(0, 1), bench.batch(2, 3, 4, 5)]
    ranges = [bench.total(start, start + 20) for start in range(0, 41, 4)]
    first, other = (batches, ranges) if blocks_first else (ranges, batches)
    bench.release(bench.total())  # all rows: nothing is chosen, and both are still possible
    bench.release(first[0])
    before = bench.store.load("d")
    bench.open_gate()
    refusals = [bench.refused(value) for value in other]
    assert {refusal.details["rule"] for refusal in refusals} == {"drawn"}
    assert len({refusal.message for refusal in refusals}) == 1
    assert bench.store.load("d") == before
    bench.release(first[-1])
    bench.release(bench.total())


def test_a_partition_of_unknown_origin_lets_whole_datasets_through() -> None:
    bench = Bench()
    bench.release(bench.total())
    state = bench.store.load("d")
    assert state is not None and state.drawn == ""
    bench.store.save("d", dataclasses.replace(state, drawn="both"))
    assert {bench.refused(value).details["rule"] for value in (bench.batch(0), bench.total(0, 20))} == {"drawn"}
    bench.release(bench.total())


def test_a_refused_release_uses_nothing_up() -> None:
    bench = Bench()
    bench.release(bench.total())
    before = bench.store.load("d")
    bench.refused(bench.total(1))
    bench.refused(bench.total(0, 5))
    assert bench.store.load("d") == before


def test_elements_add_up_over_the_dataset_and_all_clients() -> None:
    bench = Bench(max_elements=10)
    value = bench.total()
    bench.release(value)
    bench.gate.release(claim_of(bench.labels.type_of(value)), POINTERS, elements=4, nbytes=16, client=PeerId("b" * 26))
    with pytest.raises(BudgetExhausted) as caught:
        bench.release(value)
    assert caught.value.details["rule"] == "max_elements" and "8 of 10" in caught.value.message
    bench.open_gate()
    with pytest.raises(BudgetExhausted):
        bench.release(value)


def test_the_default_is_a_third_of_the_rows() -> None:
    assert Policy().element_limit(100) == 33
    assert Policy(max_elements=5).element_limit(100) == 5


@pytest.mark.parametrize(
    ("policy", "rule"),
    [({"release": "deny"}, "release"), ({"release": "approve"}, "approve"), ({"plans": "builtin"}, "plans")],
    ids=["deny", "approve", "builtin"],
)
def test_modes_that_let_nothing_out(policy: dict[str, object], rule: str) -> None:
    bench = Bench(**policy)
    assert bench.refused(bench.total()).details["rule"] == rule
    assert bench.refused(bench.total(), Origin(frozenset([PLAN]), PLAN)).details["rule"] == rule


def test_an_open_dataset_lets_rows_out_and_counts_nothing() -> None:
    bench = Bench(release="open", max_elements=1)
    bench.release(bench.x)
    state = bench.store.load("d")
    assert state is not None and state.elements == 0 and not state.partition


@pytest.mark.parametrize(
    ("origin", "leaves"),
    [
        (Origin(frozenset([PLAN]), PLAN), True),
        (Origin(frozenset([OTHER]), OTHER), False),
        (Origin(frozenset([PLAN, OTHER]), PLAN), False),
        (Origin(None, None), False),
    ],
    ids=["the plan", "another plan", "the plan on another plan's result", "pointers"],
)
def test_an_allow_list_lets_out_what_these_plans_alone_made(origin: Origin, leaves: bool) -> None:
    bench = Bench(plans="builtin", allow=[PLAN], max_elements=0)
    if leaves:
        bench.release(bench.total(), origin)  # whatever its size
    else:
        assert bench.refused(bench.total(), origin).details["rule"] == "plans"


def test_an_allow_list_does_not_lift_the_row_rules() -> None:
    bench = Bench(plans="builtin", allow=[PLAN])
    assert bench.refused(bench.x, Origin(frozenset([PLAN]), PLAN)).details["rule"] == "rows"
    assert bench.refused(bench.total(0, 3), Origin(frozenset([PLAN]), PLAN)).details["rule"] == "min_rows"


def test_a_value_moves_to_nodes_that_the_owner_names() -> None:
    bench = Bench(sinks=["bob"])
    kind = claim_of(bench.labels.type_of(bench.x))
    bench.gate.check_move(kind, "bob")
    with pytest.raises(ReleaseDenied) as caught:
        bench.gate.check_move(kind, "carol")
    assert caught.value.details["rule"] == "sinks" and "'carol'" in caught.value.message


def test_rows_of_another_owner_are_never_ours_to_release() -> None:
    bench = Bench()
    foreign = bench.labels.enter(torch.ones(4), bench.labels.foreign(["bob/d"], (4,)))
    with pytest.raises(ReleaseDenied) as caught:
        bench.release(foreign)
    assert caught.value.details["rule"] == "owner"
    with pytest.raises(ReleaseDenied):
        bench.release(bench.op("add.Tensor", foreign, bench.total()))


@pytest.mark.parametrize(
    ("policy", "origin", "rule"),
    [
        ({}, POINTERS, "sum.plan"),
        ({"share": False}, Origin(frozenset([PLAN]), PLAN), "share"),
        ({"release": "deny"}, Origin(frozenset([PLAN]), PLAN), "share"),
        ({"plans": "builtin"}, Origin(frozenset([PLAN]), PLAN), "plans"),
    ],
    ids=["a pointer result", "share = false", "deny", "a plan that is not allowed"],
)
def test_operands_that_may_not_go_into_a_sum(policy: dict[str, object], origin: Origin, rule: str) -> None:
    bench = Bench(**policy)
    with pytest.raises(ReleaseDenied) as caught:
        bench.gate.check_sum(claim_of(bench.labels.type_of(bench.total())), origin)
    assert caught.value.details["rule"] == rule


def test_a_sum_is_a_release() -> None:
    bench = Bench(max_elements=7)
    origin = Origin(frozenset([PLAN]), PLAN)
    kind = claim_of(bench.labels.type_of(bench.total(0, 20)))
    assert bench.gate.check_sum(kind, origin) == 20
    state = bench.store.load("d")
    assert state is not None and state.elements == 0  # a check uses nothing up
    bench.gate.release_sum(kind, origin, elements=4, nbytes=32, client=CLIENT)
    assert bench.refused(bench.total(1, 20)).details["rule"] == "partition"
    with pytest.raises(BudgetExhausted):
        bench.gate.release_sum(kind, origin, elements=4, nbytes=32, client=CLIENT)


async def test_values_have_a_rate_per_client() -> None:
    bench = Bench(limits=RateLimits(values=3, nbytes=1 << 20))
    bench.release(bench.total())
    bench.release(bench.total())
    bench.release(bench.total())
    with pytest.raises(QuotaExceeded, match="again in"):
        bench.release(bench.total())
    value = bench.total()
    bench.gate.release(claim_of(bench.labels.type_of(value)), POINTERS, elements=4, nbytes=16, client=PeerId("b" * 26))
    await bench.clock.advance(61)
    bench.release(bench.total())


async def test_private_errors_are_counted_per_client_for_an_hour() -> None:
    gate, clock = (bench := Bench()).gate, bench.clock
    assert [gate.count_error(CLIENT) for _ in range(3)] == [1, 2, 3]
    gate.check_errors(CLIENT)
    await clock.advance(1800)
    assert [gate.count_error(CLIENT) for _ in range(3)] == [4, 5, 5]
    with pytest.raises(ReleaseDenied) as refused:
        gate.check_errors(CLIENT)
    assert refused.value.details["rule"] == "private_errors"
    gate.check_errors(PeerId("b" * 26))
    await clock.advance(1801)
    gate.check_errors(CLIENT)
    assert gate.count_error(CLIENT) == 4


def test_bytes_have_a_rate_per_client() -> None:
    bench = Bench(limits=RateLimits(values=1000, nbytes=20))
    bench.release(bench.total())
    with pytest.raises(QuotaExceeded):
        bench.release(bench.total())


@pytest.mark.parametrize(
    "table",
    [
        {"release": "everything"},
        {"plans": "some"},
        {"min_rows": 0},
        {"min_rows": True},
        {"max_elements": -1},
        {"allow": ["abc"]},
        {"sinks": "bob"},
        {"share": "yes"},
        {"updates": "each"},
        {"same_organisation": "yes"},
        {"min_cohort": 2},
        {"epsilon": 0},
        {"delta": 1.5},
        {"unknown": 1},
    ],
    ids=lambda table: next(iter(table)),
)
def test_a_policy_that_makes_no_sense_names_the_key(table: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(table))):
        Policy.from_table(table)


# ---------------------------------------------------------------- released by hand


def released_by_hand(value_of: Callable[[Bench], Tensor]) -> Bench:
    """A dataset of which a value left with its owner's approval, and whose owner then turned to "aggregate"."""
    bench, owner = Bench(release="approve"), SigningKey(b"o" * 32)
    approvals = Approvals(bench.store, owner.public, bench.clock)
    gate = Gate(
        [Guarded("d", ROWS, bench.policy)], store=bench.store, clock=bench.clock, limits=bench.limits, approvals=approvals
    )
    value = value_of(bench)
    claim, content = claim_of(bench.labels.type_of(value)), Content("plan:1", "f4[4]", b"digest", lambda: "def f(): ...")

    def release() -> None:
        gate.release(claim, Origin(plan=PLAN), elements=4, nbytes=16, client=CLIENT, content=content)

    with pytest.raises(ReleaseDenied, match="waiting for approval"):
        release()
    state = bench.store.load("d")
    assert state is not None and not state.partition and state.elements == 0, "nothing has left yet"
    (request,) = approvals.requests()
    assert ("would let it leave" in request.report) == (claim.mixed == "" and claim.rows[0].axis is None)
    approvals.decide(request.id, allow=True, key=owner)
    release()
    bench.policy = dataclasses.replace(bench.policy, release="aggregate")
    bench.open_gate()
    return bench


def test_what_left_by_hand_counts_in_later_rules() -> None:
    bench = released_by_hand(lambda bench: bench.total())
    state = bench.store.load("d")
    assert state is not None and state.elements == 4
    bench.release(bench.total())


def test_rows_that_left_by_hand_are_known_for_ever() -> None:
    for value_of in (lambda bench: bench.x, lambda bench: bench.op("max.dim", bench.x, 0)):
        bench = released_by_hand(value_of)
        assert bench.refused(bench.total()).details["rule"] == "partition"


def test_a_dataset_released_by_hand_takes_no_part_in_sums() -> None:
    bench = Bench(release="approve")
    with pytest.raises(ReleaseDenied, match="by hand") as caught:
        bench.gate.check_sum(claim_of(bench.labels.type_of(bench.total())), Origin(plan=PLAN))
    assert caught.value.details["rule"] == "release"


# ---------------------------------------------------------------- committees

BOB, CAROL = PeerId("b" * 26), PeerId("c" * 26)
NAMES = {BOB: "bob", CAROL: "carol"}


@pytest.mark.parametrize(
    ("policy", "dev", "refused_by"),
    [
        ({}, False, "share.committee"),
        ({}, True, ""),
        ({"release": "open"}, False, ""),
        ({"release": "approve"}, False, "share.committee"),
        ({"release": "approve"}, True, ""),
        ({"release": "deny"}, True, "share"),
        ({"release": "deny", "allow": [PLAN], "share": ["bob", "carol"]}, False, ""),
        ({"release": "deny", "allow": [PLAN], "share": True}, True, "share.committee"),
        ({"release": "deny", "allow": [PLAN]}, True, "share"),
        ({"release": "deny", "share": ["bob", "carol"]}, False, ""),
        ({"share": True}, False, ""),
        ({"share": False}, True, "share"),
        ({"share": []}, True, "share.committee"),
        ({"share": ["bob"]}, True, "share.committee"),
        ({"share": ["bob", "carol"]}, False, ""),
        ({"share": ["carol", "bob", "dave"]}, False, ""),
        ({"share": [BOB, "carol"]}, False, ""),
        ({"release": "open", "share": ["bob"]}, True, "share.committee"),
    ],
)
def test_rows_go_in_shares_to_nodes_that_the_owner_trusts(policy: dict[str, object], dev: bool, refused_by: str) -> None:
    bench = Bench(dev=dev, **policy)
    claim = claim_of(bench.labels.type_of(bench.x))
    if not refused_by:
        assert bench.gate.check_share(claim, NAMES) == [("d", bench.policy.release)]
        return
    with pytest.raises(ReleaseDenied) as denied:
        bench.gate.check_share(claim, NAMES)
    assert denied.value.details["rule"] == refused_by
    if refused_by == "share.committee":
        assert 'share = ["bob", "carol"]' in denied.value.message and "joined forces" in denied.value.message


def test_the_card_says_who_may_have_shares() -> None:
    policies: list[tuple[dict[str, object], tuple[str, ...]]] = [
        ({"release": "aggregate"}, ()),
        ({"release": "aggregate", "share": ["bob"]}, ("bob",)),
        ({"release": "deny"}, ()),
        ({"release": "deny", "share": ["bob"]}, ("bob",)),
        ({"release": "aggregate", "share": True}, ("*",)),
    ]
    for table, parties in policies:
        assert Policy.from_table(table).card(ROWS).parties == parties
    assert Policy.from_table({"release": "aggregate"}).card(ROWS, dev=True).parties == ("*",)
    for wrong in ("bob", ["*"], [1], ["a b"], 1):
        with pytest.raises(InvalidRequest, match="share"):
            Policy.from_table({"share": wrong})


# ---------------------------------------------------------------- results of committees


def rows_of(bench: Bench, value: Tensor) -> RowsClaim:
    (rows,) = claim_of(bench.labels.type_of(value)).rows
    return rows


def opens(bench: Bench, plan: PlanId | None, rows: RowsClaim | None, *, elements: int = 4, own: bool = False, **more: Any) -> str:
    """The rule by which a result on shares stays closed, "" where it opens."""
    nbytes = 4 * elements
    try:
        bench.gate.release_on_shares({"d": rows}, plan, elements=elements, nbytes=nbytes, client=CLIENT, own=own, **more)
    except ReleaseDenied as denied:
        return str(denied.details["rule"])
    return ""


@pytest.mark.parametrize("release", ["aggregate", "approve", "deny"])
def test_a_result_on_shares_opens_where_its_plan_is_listed(release: str) -> None:
    bench = Bench(release=release, plans="builtin", allow=[PLAN], share=["bob"], max_elements=None)
    rows = rows_of(bench, bench.x)
    assert opens(bench, PLAN, rows, elements=100_000) == ""  # whatever its size, where the owner has written no limit
    assert opens(bench, OTHER, rows) == opens(bench, None, rows) == opens(bench, PLAN, None) == "committee.release"
    assert opens(bench, None, None, own=True) == ""
    state = bench.store.load("d")
    assert state is not None and state.elements == 100_000


WITH = f"{PLAN}(alice/d, bob/d/targets, *)"


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ([{"alice/d", "id-a/d"}, {"id-b/d/targets", "bob/d/targets"}, {"/"}], ""),
        ([{"alice/d"}, {"bob/d/targets"}, {"alice/d"}], ""),
        ([{"bob/d/targets"}, {"alice/d"}, {"/"}], "committee.release"),
        ([{"alice/d"}, {"/"}, {"/"}], "committee.release"),
        ([{"alice/d"}, {"bob/d"}, {"/"}], "committee.release"),
        ([{"alice/d"}, {"bob/d/targets"}], "committee.release"),
        ([], "committee.release"),
    ],
)
def test_a_plan_that_is_listed_with_arguments_is_for_these(given: list[set[str]], rule: str) -> None:
    bench = Bench(release="deny", allow=[OTHER, WITH], share=["bob"])
    rows = rows_of(bench, bench.x)
    assert opens(bench, PLAN, rows, given=given) == rule
    assert opens(bench, OTHER, rows, given=given) == ""
    assert bench.gate.names_arguments and not Bench(allow=[PLAN]).gate.names_arguments


def test_a_plan_that_is_listed_with_arguments_takes_whole_datasets_and_is_for_shares_alone() -> None:
    bench = Bench(release="aggregate", plans="builtin", allow=[f"{PLAN}(alice/d)"], share=["bob"])
    block = rows_of(bench, bench.batch(0))
    assert opens(bench, PLAN, block, given=[{"alice/d"}]) == "committee.release"
    assert opens(bench, PLAN, rows_of(bench, bench.x), given=[{"alice/d"}]) == ""
    total = claim_of(bench.labels.type_of(bench.total()))
    with pytest.raises(ReleaseDenied) as denied:
        bench.gate.release(total, Origin(frozenset([PLAN]), PLAN), elements=2, nbytes=8, client=CLIENT)
    assert denied.value.details["rule"] == "plans"


def test_a_written_max_elements_holds_for_results_on_shares() -> None:
    bench = Bench(release="deny", allow=[PLAN], share=["bob"], max_elements=5)
    rows = rows_of(bench, bench.x)
    assert [opens(bench, PLAN, rows, elements=count) for count in (3, 3, 2, 1)] == ["", "max_elements", "", "max_elements"]
    assert opens(bench, None, None, own=True) == ""


@pytest.mark.parametrize("end", [" (a/b)", "()", "(a)", "(a/b, )", "(a b/c)", "(a/b", "(a/b))", "0"])
def test_what_allow_does_not_take(end: str) -> None:
    with pytest.raises(InvalidRequest, match="allow"):
        Policy.from_table({"allow": [PLAN + end]})


def test_public_rows_on_shares_open_and_other_nodes_rows_do_not() -> None:
    assert opens(Bench(release="open"), None, None) == ""
    with pytest.raises(ReleaseDenied):
        Bench(release="open").gate.release_on_shares({"e": None}, None, elements=1, nbytes=4, client=CLIENT, own=True)


def test_results_on_shares_count_in_what_a_client_is_given() -> None:
    bench = Bench(limits=RateLimits(2, 1 << 20), allow=[PLAN])
    rows = rows_of(bench, bench.x)
    assert opens(bench, PLAN, rows) == opens(bench, None, None, own=True) == ""
    for own in (False, True):
        with pytest.raises(QuotaExceeded):
            opens(bench, PLAN, rows, own=own)


def test_results_of_blocks_on_shares_draw_the_partition_of_later_releases() -> None:
    bench = Bench(allow=[PLAN])
    blocks_of = [rows_of(bench, bench.batch(number)) for number in (0, 1)]
    both = merged(*blocks_of)
    assert both.cells(ROWS).count == 2 and both.cells(ROWS).smallest == 10
    assert merged(rows_of(bench, bench.x), both).cells(ROWS).count == 3
    assert opens(bench, PLAN, both) == ""
    assert bench.refused(bench.total(0, 30)).details["rule"] == "drawn"
    assert opens(bench, PLAN, rows_of(bench, bench.x)) == ""
