"""The gate: whether a value may leave a node, by the rules that the owners of the rows behind it wrote.

One gate per node. It knows each dataset's policy and what the dataset has released so far (the partition of its rows that
all releases together have drawn, whether by blocks or by positions, and the number of elements), kept in the store. No
refusal depends on which rows are in which secret block, and none counts rows. Checks come in the order in which a user
can do something about them; the first that fails raises `ReleaseDenied` with the rule, the step that caused it where there
is one, and what to write instead. A release is committed to the store before the method returns, so before a value leaves.

A value without a label is the client's own and needs no rule; `Gate` is not asked about it. What is said of one with a label
is a `Claim`, since the value itself may lie in another process. Methods are for any thread.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property, partial

import numpy as np

from grid.clock import Clock
from grid.errors import BudgetExhausted, QuotaExceeded, ReleaseDenied
from grid.ids import PeerId, PlanId
from grid.policy.approvals import Approvals, Content
from grid.policy.claims import Claim, RowsClaim
from grid.policy.rules import ANY, ANYBODY, ANYTHING, APPROVE, DENY, OPEN, Policy
from grid.store.base import DatasetState, Store
from grid.tensors.rows import Cells, Choice, refine_ids

MINUTE_S = 60.0
HOUR_S = 3600.0
MAX_CLIENTS = 10_000
"""Clients whose rate is remembered at once."""

DRAWN = {Choice.WHOLE: "", Choice.POSITIONS: "positions", Choice.BLOCKS: "blocks"}
"""What a release is drawn by, as the store remembers it. One of both never gets there: it is mixed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Guarded:
    """A dataset as the gate sees it."""

    name: str
    rows: int
    policy: Policy


@dataclasses.dataclass(frozen=True, slots=True)
class Origin:
    """How a value was made. `plans`: every plan that took part, where plan calls alone made it from parts of datasets;
    None where pointer commands took part, which can do anything. `plan`: the one plan of which it is a direct result."""

    plans: frozenset[PlanId] | None = None
    plan: PlanId | None = None


POINTERS = Origin()
"""The origin of what pointer commands made or changed."""


@dataclasses.dataclass(slots=True)
class _Rate:
    since: float
    values: int = 0
    nbytes: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class RateLimits:
    """What one client may be given per minute."""

    values: int
    nbytes: int


class _Value:
    """What a value is made of in one dataset; its cells are looked at only where the rules before let it pass."""

    def __init__(self, dataset: Guarded, part: RowsClaim) -> None:
        self.dataset = dataset
        self.part = part

    @cached_property
    def cells(self) -> Cells:
        return self.part.cells(self.dataset.rows)


class Gate:
    """The rules of one node's datasets. The store has a state for each of them already (`DatasetState`).

    `max_errors`: how many errors that depend on private values one client may be told in an hour.
    """

    def __init__(
        self,
        datasets: Iterable[Guarded],
        *,
        store: Store,
        clock: Clock,
        limits: RateLimits,
        max_errors: int = 5,
        approvals: Approvals | None = None,
        dev: bool = False,
    ) -> None:
        self._dev = dev
        self._datasets: Mapping[str, Guarded] = {dataset.name: dataset for dataset in datasets}
        self._store = store
        self._clock = clock
        self._limits = limits
        self._rates: dict[PeerId, _Rate] = {}
        self._errors: dict[PeerId, tuple[float, ...]] = {}
        self._max_errors = max_errors
        self._approvals = approvals
        self._lock = threading.Lock()

    # ------------------------------------------------------------ what callers ask

    @property
    def names_arguments(self) -> bool:
        """Whether any dataset here lists a plan on shares with what it is to be given."""
        return any(arguments is not None for dataset in self._datasets.values() for _, arguments in dataset.policy.calls)

    @property
    def needs_approval(self) -> bool:
        """Whether any dataset here is released by hand, so that what made a value is to be shown to its owner."""
        return any(dataset.policy.release == APPROVE for dataset in self._datasets.values())

    def release(
        self, claim: Claim, origin: Origin, *, elements: int, nbytes: int, client: PeerId, content: Content | None = None
    ) -> None:
        """Let such a value go to this client, or raise `ReleaseDenied`, `BudgetExhausted`, `QuotaExceeded`.

        `content` is the value itself, which an owner who releases by hand decides on; without it that owner's data stays.
        """
        with self._lock:
            guarded = self._guarded(claim)
            by_hand = [value for value in guarded if value.dataset.policy.release == APPROVE]
            values = [self._checked(value, claim, origin) for value in guarded if value not in by_hand]
            approved = [self._approved(value, claim, origin, client, content) for value in by_hand]
            self._charge_rate(client, nbytes)
            ruled = [value for value in values if value.dataset.policy.release != OPEN]
            after = [self._after(one, elements, counted=not _is_allowed(one.dataset.policy, origin)) for one in ruled]
            after += [self._after_by_hand(value, claim, elements) for value in by_hand]
            for request in approved:
                request()
            for name, state in after:
                self._store.save(name, state)

    def check_sum(self, claim: Claim, origin: Origin) -> int:
        """Whether a value may go into a secure sum, before anything is committed; the rows of the smallest cell behind it."""
        with self._lock:
            smallest = []
            for value in self._guarded(claim):
                self._check_share(value.dataset)
                self._checked(value, claim, origin)
                self._check_single_plan(value.dataset, origin)
                smallest.append(value.cells.smallest)
            return min(smallest)

    def least_cohort(self, claim: Claim) -> int:
        """How many nodes the owners of all rows behind a value ask for, by `min_cohort`, in a sum that it goes into; or 0."""
        return max(value.dataset.policy.min_cohort or 0 for value in self._guarded(claim))

    def is_open(self, claim: Claim) -> bool:
        """Whether the owners of all rows behind a value let those out, so that it hides nothing."""
        return all(value.dataset.policy.release == OPEN for value in self._guarded(claim))

    def release_sum(self, claim: Claim, origin: Origin, *, elements: int, nbytes: int, client: PeerId) -> None:
        """Commit the release of a sum that this value goes into; raises as `check_sum` and `release`."""
        self.check_sum(claim, origin)
        self.release(claim, origin, elements=elements, nbytes=nbytes, client=client)

    def check_move(self, claim: Claim, to: str) -> None:
        """Whether a value with rows may move to the node of this name. It takes its label along, so nothing is used up."""
        with self._lock:
            for dataset in [value.dataset for value in self._guarded(claim)]:
                if dataset.policy.release != OPEN and to not in dataset.policy.sinks:
                    raise _denied(
                        "sinks",
                        dataset,
                        f"values with its rows may not move to node {to!r}",
                        instead="a result that may be released, or ask the owner to list the node in `sinks`",
                    )

    def check_share(self, claim: Claim, nodes: Mapping[PeerId, str]) -> list[tuple[str, str]]:
        """Whether a value with rows may be split among these nodes of a committee, this one left out, with the names on their
        cards; each dataset behind it with its rule for releases. Nothing leaves by that, so nothing is used up."""
        with self._lock:
            datasets = [value.dataset for value in self._guarded(claim)]
            for dataset in datasets:
                self._check_share(dataset)
                self._check_parties(dataset, nodes)
            return [(dataset.name, dataset.policy.release) for dataset in datasets]

    def release_on_shares(
        self,
        behind: Mapping[str, RowsClaim | None],
        plan: PlanId | None,
        *,
        elements: int,
        nbytes: int,
        client: PeerId,
        own: bool,
        given: Sequence[Collection[str]] = (),
    ) -> None:
        """Let a value that a committee computed of shares of these datasets be opened; raises as `release`.

        By dataset: the rows that were shared, None where something else than parts of it as they stand went in. `plan` is the one
        plan of which it is a direct result, `given` what `rules.argument` says of each of its arguments. No label follows rows on
        shares, so that plans, and a `max_elements` that the owner has written, are all there is to go by. `own`: it opens to this
        node alone, where it is as private as the rows.
        """
        with self._lock:
            for name in behind:
                if name not in self._datasets:
                    raise ReleaseDenied(f"this node has no dataset {name[:100]!r}", rule="owner")
            datasets = [self._datasets[name] for name in behind]
            ruled = [] if own else [dataset for dataset in datasets if dataset.policy.release != OPEN]
            for dataset in ruled:
                self._check_plan_on_shares(dataset, plan, behind[dataset.name], given)
            self._charge_rate(client, nbytes)
            after = [
                self._after(_Value(dataset, rows), elements, counted=dataset.policy.max_elements is not None)
                for dataset in ruled
                if (rows := behind[dataset.name]) is not None  # it was checked
            ]
            for name, state in after:
                self._store.save(name, state)

    def check_errors(self, client: PeerId) -> None:
        """Raise `ReleaseDenied` for a client that has been told as many private errors as it may within the last hour."""
        with self._lock:
            told = self._recent_errors(client)
            if len(told) >= self._max_errors:
                wait = max(1, round((told[0] + HOUR_S - self._clock.monotonic()) / MINUTE_S))
                raise ReleaseDenied(
                    f"denied: {len(told)} operations of this client on private values failed within an hour, and each such"
                    f" failure tells a little about them. Try again in {wait} min",
                    rule="private_errors",
                    instead="values that are clamped to where they are used as an index or a divisor",
                )

    def count_error(self, client: PeerId) -> int:
        """Note an error that depends on private values, whatever session it is told in; how many there were in an hour.

        Never raises: that would tell of an error without counting it.
        """
        with self._lock:
            told = (*self._recent_errors(client), self._clock.monotonic())[-self._max_errors :]
            self._errors.pop(client, None)
            self._errors[client] = told
            if len(self._errors) > MAX_CLIENTS:
                del self._errors[next(iter(self._errors))]  # whose last error is the oldest
            return len(told)

    def _recent_errors(self, client: PeerId) -> tuple[float, ...]:
        since = self._clock.monotonic() - HOUR_S
        return tuple([at for at in self._errors.get(client, ()) if at > since])

    # ------------------------------------------------------------ rules

    def _guarded(self, claim: Claim) -> Sequence[_Value]:
        """The datasets behind a value. Rows that came from another node are that owner's to release, never ours."""
        own = [_Value(self._datasets[part.dataset], part) for part in claim.rows if part.dataset in self._datasets]
        if len(own) < len(claim.rows) or not own:
            reason = claim.mixed or "it carries rows of another node's dataset"
            raise ReleaseDenied(
                f"denied: {reason}. Only the node that owns the rows releases them",
                rule="owner",
                instead="compute the result where the rows are, and move or sum that",
            )
        return own

    def _checked(self, value: _Value, claim: Claim, origin: Origin) -> _Value:
        """The value, if the rules of this dataset let it leave."""
        dataset, policy = value.dataset, value.dataset.policy
        if policy.release == OPEN:
            return value
        if policy.release == DENY:
            raise _denied("release", dataset, "its owner releases nothing (release = \"deny\")", instead="another dataset")
        if policy.release == APPROVE:
            raise _denied(
                "release",
                dataset,
                "its owner approves each release by hand, and a part of a sum is not known before it is released",
                instead="get() of a result at this node alone, or ask the owner for release = \"aggregate\"",
            )
        self._check_plans(dataset, origin)
        self._check_labels(value, claim)
        return value

    def _approved(
        self, value: _Value, claim: Claim, origin: Origin, client: PeerId, content: Content | None
    ) -> Callable[[], None]:
        """What uses up the owner's approval of this value; raises without one."""
        if content is None or self._approvals is None:
            raise _denied("approve", value.dataset, "its owner approves each release by hand", instead="get() of a result")
        request = self._approvals.approved(value.dataset.name, client, origin.plan, content, self._report(value, claim))
        return partial(self._approvals.use, request)

    def _report(self, value: _Value, claim: Claim) -> str:
        """What the rules of "aggregate" say to a value, for its owner alone: it counts rows."""
        try:
            self._check_labels(value, claim)
        except ReleaseDenied as error:
            return f'release = "aggregate" would refuse it ({error.details["rule"]}): {error.message}'
        return (
            f'release = "aggregate" would let it leave; the smallest group behind it has {value.cells.smallest} rows. These rules'
            " do not look at values: constants of the plan and the client's own arguments can single out people"
        )

    def _check_plans(self, dataset: Guarded, origin: Origin) -> None:
        if dataset.policy.plans == ANY or _is_allowed(dataset.policy, origin):
            return
        what = "results of pointer commands do not" if origin.plans is None else "results of this plan do not"
        raise _denied(
            "plans",
            dataset,
            f'only built-in statistics and the plans in `allow` may give results (plans = "builtin"); {what}',
            instead="a plan whose id the owner lists in `allow`, called on parts of the dataset, or ask for plans = \"any\"",
        )

    def _check_labels(self, value: _Value, claim: Claim) -> None:
        dataset, axis = value.dataset, value.part.axis
        if claim.mixed:
            raise _denied(
                "mixed",
                dataset,
                f"the value cannot be shown to treat rows alike: {claim.mixed}",
                step=claim.step,
                instead=claim.instead or "reduce over the rows (sum, mean) before combining them with anything else",
            )
        if axis is not None:
            raise _denied(
                "rows",
                dataset,
                f"dimension {axis} of the value holds its rows, one by one",
                instead=f"reduce that dimension, for example .sum({axis}) or .mean({axis})",
            )
        self._check_size(value, value.cells.smallest, "min_rows", "can be told apart in the value")

    def _check_size(self, value: _Value, smallest: int, rule: str, what: str) -> None:
        dataset = value.dataset
        if smallest < dataset.policy.min_rows:
            raise _denied(
                rule,
                dataset,
                f"fewer than min_rows ({dataset.policy.min_rows}) rows of it {what}",
                step=value.part.blame,
                instead="whole blocks of rows: `ds.batches` or `ds.split` in place of slices and index lists",
            )

    def _check_share(self, dataset: Guarded) -> None:
        if dataset.policy.may_share:
            return
        raise _denied("share", dataset, "its owner does not let it be split into shares", instead="another dataset")

    def _check_parties(self, dataset: Guarded, nodes: Mapping[PeerId, str]) -> None:
        trusted = dataset.policy.parties(dev=self._dev)
        others = [name for node, name in nodes.items() if node not in trusted and name not in trusted]
        if trusted == ANYBODY or not others:
            return
        line = ", ".join(f'"{name}"' for name in nodes.values())
        raise _denied(
            "share.committee",
            dataset,
            f"its rows would go in shares to {_listed(nodes.values())}, any two of which could put them together and read them"
            f" all if they joined forces; its owner has not said that {_listed(others)} may have shares",
            instead=f"a committee of nodes that the owner trusts, or ask the owner to write share = [{line}] under [policy]",
        )

    def _check_plan_on_shares(
        self, dataset: Guarded, plan: PlanId | None, rows: RowsClaim | None, given: Sequence[Collection[str]]
    ) -> None:
        listed = [arguments for known, arguments in dataset.policy.calls if known == plan]
        if plan is None:
            what = "this one is no direct result of a plan on values as they were shared"
        elif not listed:
            what = f"the plan {plan} is not listed"
        elif rows is None:
            what = "what was shared was no part of the dataset as it stands, but computed from it before"
        elif None in listed:
            return
        elif _Value(dataset, rows).cells.choice != Choice.WHOLE:
            what = f"the plan {plan} is listed with arguments, each a whole dataset, and some rows of this one were shared alone"
        elif not any(_are_given(arguments, given) for arguments in listed if arguments is not None):
            calls = " or ".join(f"({', '.join(arguments or ())})" for arguments in listed)
            what = f"the plan {plan} is listed for {calls} alone, and was called with something else"
        else:
            return
        by_hand = " (it approves by hand what is computed at its own node alone)" if dataset.policy.release == APPROVE else ""
        raise _denied(
            "committee.release",
            dataset,
            "of its rows on shares only results of plans that its owner lists in `allow` are opened to others, and"
            f" {what}{by_hand}",
            instead="a plan whose id the owner lists in `allow`, run by the committee on parts of the dataset (trio.run), or"
            " reveal(to=) the owner's node; or pointers, plans and grid.sum at that node, under its own rules",
        )

    def _check_single_plan(self, dataset: Guarded, origin: Origin) -> None:
        if dataset.policy.release != OPEN and origin.plan is None:
            raise _denied(
                "sum.plan",
                dataset,
                "an operand of a sum over datasets must be a direct result of a plan, so that every node can check that all"
                " operands are made in the same way",
                instead="put the computation into a function under @grid.plan and call it on each node's dataset",
            )

    # ------------------------------------------------------------ what adds up

    def _after_by_hand(self, value: _Value, claim: Claim, elements: int) -> tuple[str, DatasetState]:
        """The same for a value that its owner let go: no limit holds, and what it may tell of rows counts as known."""
        dataset = value.dataset
        state = self._store.load(dataset.name)
        assert state is not None
        if claim.mixed or value.part.axis is not None:
            ids, own = np.arange(1, dataset.rows + 1, dtype=np.int32), ""
        else:
            ids, own = _refined(state, value.cells).ids, DRAWN[value.cells.choice]
        drawn = own if not state.drawn else state.drawn if own in ("", state.drawn) else "both"
        partition = ids.astype("<i4").tobytes()
        return dataset.name, dataclasses.replace(state, partition=partition, elements=state.elements + elements, drawn=drawn)

    def _after(self, value: _Value, elements: int, *, counted: bool) -> tuple[str, DatasetState]:
        """What will be remembered of a dataset once the value has left; raises where that would be too much, for more elements
        than may leave only if they are `counted`."""
        dataset, cells = value.dataset, value.cells
        state = self._store.load(dataset.name)
        assert state is not None  # made when the node started
        choice = _checked_choice(dataset, state, cells)  # before the partition is looked at
        drawn = _refined(state, cells)
        self._check_size(
            value,
            drawn.smallest,
            "partition",
            "could be told apart by combining the value with what has been released before",
        )
        total = state.elements + elements
        limit = dataset.policy.element_limit(dataset.rows)
        if counted and total > limit:
            raise BudgetExhausted(
                f"dataset {dataset.name!r}: {state.elements} of {limit} elements have been released, and this value has"
                f" {elements} more (max_elements). The count is over the dataset's life and all clients",
                rule="max_elements",
                dataset=dataset.name,
                instead="fewer or smaller results, or ask the owner for a higher max_elements",
            )
        partition = drawn.ids.astype("<i4").tobytes()
        return dataset.name, dataclasses.replace(state, partition=partition, elements=total, drawn=choice)

    def _charge_rate(self, client: PeerId, nbytes: int) -> None:
        now = self._clock.monotonic()
        rate = self._rates.get(client)
        if rate is None or now - rate.since >= MINUTE_S:
            if len(self._rates) >= MAX_CLIENTS:
                self._rates = {peer: old for peer, old in self._rates.items() if now - old.since < MINUTE_S}
            if len(self._rates) >= MAX_CLIENTS:
                raise QuotaExceeded("too many clients ask for values at this node at present; try again in a minute")
            rate = self._rates[client] = _Rate(since=now)
        if rate.values + 1 > self._limits.values or rate.nbytes + nbytes > self._limits.nbytes:
            wait = max(1, round(MINUTE_S - (now - rate.since)))
            raise QuotaExceeded(
                f"this node gives one client {self._limits.values} values or {self._limits.nbytes} bytes of datasets' results a"
                f" minute; try again in {wait} s"
            )
        rate.values += 1
        rate.nbytes += nbytes


def _is_allowed(policy: Policy, origin: Origin) -> bool:
    """Whether plans that the owner lists, and nothing else, made the value from parts of datasets."""
    return origin.plan is not None and origin.plans is not None and origin.plans <= frozenset(policy.allow)


def _are_given(arguments: Sequence[str], given: Sequence[Collection[str]]) -> bool:
    """Whether a plan's arguments are those that an owner lists."""
    if len(arguments) != len(given):
        return False
    return all(wanted == ANYTHING or wanted in found for wanted, found in zip(arguments, given, strict=True))


def _checked_choice(dataset: Guarded, state: DatasetState, cells: Cells) -> str:
    """What the dataset's releases are drawn by with this one. Those of blocks and those of positions exclude each other:
    whether they fit together would tell which rows a block holds."""
    own = DRAWN[cells.choice]
    if not own or own == state.drawn:
        return state.drawn
    if state.drawn:
        raise _denied(
            "drawn",
            dataset,
            f"its rows were chosen by {own} here, and not by {own} alone in what has been released before; together they"
            " could tell which rows are in which secret block",
            instead="all rows, or rows chosen as before: `ds.batches` and `ds.split` if by blocks, slices if by positions",
        )
    return own


def _refined(state: DatasetState, cells: Cells) -> Cells:
    """The partition that all releases so far draw together with this one."""
    if not state.partition:
        return cells
    drawn = np.frombuffer(state.partition, dtype="<i4")
    merged = refine_ids(drawn.astype(np.int32), cells.ids)
    _, numbered = np.unique(merged, return_inverse=True)
    ids = numbered.astype(np.int32) + (0 if bool((merged == 0).any()) else 1)
    return Cells(cells.dataset, ids, cells.choice)


def _listed(names: Iterable[str]) -> str:
    *front, last = names
    return f"{', '.join(front)} and {last}" if front else last


def _denied(rule: str, dataset: Guarded, why: str, *, step: str = "", instead: str) -> ReleaseDenied:
    place = f" (at {step})" if step else ""
    return ReleaseDenied(
        f"dataset {dataset.name!r}: {why}{place}. Instead: {instead}",
        rule=rule,
        dataset=dataset.name,
        step=step,
        instead=instead,
    )
