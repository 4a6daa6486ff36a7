"""One job from its offer to its end, as the gateway drives it: a state machine without I/O.

    waiting ──enough nodes have agreed──> running: round, round, ..., evaluation of the last model ──> done
                                             └── no round ends within `DEADLINES` deadlines ──> failed

It offers the job to its nodes, draws those of each round, hands events to the round under way (`rounds`, `single`), applies the
strategy to the sum, and keeps all that it takes to go on elsewhere. Reports are told when they are kept. A round that is lost
is followed by another one on the same model, under another number. Inputs are methods with the time (monotonic seconds); each
returns the effects to carry out, in order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgpack
import numpy as np

from grid.display import counted
from grid.errors import DeadlineExceeded, GridError, InvalidRequest, QuorumLost
from grid.federated.attendance import Attendance
from grid.federated.effects import OFFER, Ask, Call, Dismiss, Effect, Keep, Key, Story, Tell, Work
from grid.federated.orders import Model, Order, draw, metrics_of, terms_of, widened
from grid.federated.progress import (
    CANCELLED,
    DONE,
    FAILED,
    OVER,
    PROGRESS,
    ROUND,
    RUNNING,
    START,
    STATE,
    Progress,
    pack_arrays,
    pack_report,
    report_part,
    weights_part,
)
from grid.federated.rounds import MAX_REASON, SHORT, AnyRound, Done, Lost, Plan
from grid.federated.secagg.quantiser import MISFIT
from grid.federated.secagg.statements import Terms
from grid.federated.secure_round import REVEALS, SUM, SecureRound
from grid.federated.single import Combine, SingleRound, Sum
from grid.federated.spec import EQUAL
from grid.federated.strategy import Strategy
from grid.ids import PeerId
from grid.wire.jobs import JobCard, OfferJob, RoundReport
from grid.wire.messages import Message, Ok

DEADLINES = 3
"""How many deadlines of a round a job may go without finishing one."""

REFUSALS = 3
"""How many rounds in a row may be lost because nodes refuse."""

NAMED = 10
"""Nodes that a text names before it only counts them."""

CALL_EVERY_S = 5.0
GATHER_S = 5.0
"""How long the first round waits for nodes that have not come, where enough are there. Those that have come get more time."""

ATTEMPTS_OF_A_RUN = 1 << 16
"""A gateway that is started again begins attempts at a number that none before it has used."""


class Coordination:
    """`largest`: an upper bound of the examples of any node. `name`: how people call a node. `seed` orders the draws of nodes."""

    def __init__(
        self,
        order: Order,
        strategy: Strategy,
        model: Model,
        *,
        progress: Progress,
        reports: Sequence[RoundReport] = (),
        largest: Callable[[], int] = lambda: 1,
        name: Callable[[PeerId], str] = str,
        wall: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.order = order
        self.spec = order.spec
        self.progress = progress
        self.reports = list(reports)
        self.story = Story(f"job {self.spec.job}")
        self.rounds = self.rounds_lost = 0
        """How many have ended well, and not, in this process."""
        self._strategy = strategy
        self._model = model
        self._largest, self._name, self._wall = largest, name, wall
        self._attendance = Attendance(self.spec.nodes)
        self._quorum = max(self.spec.min_nodes, 2) if self.spec.secure else self.spec.min_nodes
        self._absent: set[PeerId] = set()
        self._round: AnyRound | None = None
        self._evaluating = False
        self._applying: tuple[Done, bool, float] | None = None
        self._keeping: dict[str, RoundReport | None] = {}
        self._has_begun = False
        self._round_began = self._stuck_since = 0.0
        self._not_before = 0.0
        self._lost_in_row = 0
        self._reason: Lost | None = None
        self._called_at = -CALL_EVERY_S
        self._idle = self._told = ""

    # ------------------------------------------------------------ what is told

    @property
    def over(self) -> bool:
        """Whether nothing more will come of the job."""
        return self.progress.state in OVER

    def close(self) -> None:
        """Let go of what the strategy holds, such as a process. Called in a thread, when nothing more will be computed."""
        self._strategy.close()

    @property
    def settled(self) -> bool:
        """Whether it is over, and all of it is kept."""
        return self.over and not self._keeping

    @property
    def model(self) -> Model:
        """The model after `progress.done` rounds."""
        return self._model

    def card(self) -> JobCard:
        """What is known of it. It is told as running until its end is kept: who watches it stops at the end."""
        card = self.progress.card(self.spec, text=self.text)
        return dataclasses.replace(card, state=RUNNING, ended=0.0) if self.over and self._keeping else card

    # ------------------------------------------------------------ inputs

    def start(self, now: float, start: bytes = b"") -> list[Effect]:
        """A new job: keep it, and call its nodes. `start` is what a gateway needs to read the order again."""
        self.story.heard(now, "the job has come")
        self.progress.started = self._wall()
        self._stuck_since = now
        parts = {START: start, PROGRESS: self.progress.to_bytes(), **self._model_parts()}
        return [Keep(self.story.cause, START, parts), *self._call(now)]

    def resume(self, now: float, kept: Mapping[str, bytes]) -> list[Effect]:
        """A job that another gateway process has driven. `kept` are its parts `SUM`, `ROUND` and `REVEALS`, if there are any."""
        self.story.heard(now, "the gateway was started again")
        self.progress.runs += 1
        self._stuck_since = now
        effects: list[Effect] = [Keep(self.story.cause, "again", {PROGRESS: self.progress.to_bytes()})]
        if not self.over and SUM in kept and ROUND in kept:
            effects += self._resume_round(now, kept)
        return effects + self._call(now)

    def came(self, peer: PeerId, now: float) -> list[Effect]:
        """A node has opened a job channel, perhaps in place of one that we have not seen end."""
        if self.over or peer not in self._attendance.nodes:
            return []
        self._hears(peer, now, "came")
        self._attendance.came(peer)
        order = self.order
        offer = OfferJob(job=self.spec.job, envelope=order.envelope, card=order.card, train=order.train, evaluate=order.evaluate)
        return [Ask(self.story.cause, peer, OFFER, offer, self.spec.deadline_s)]

    def left(self, peer: PeerId, now: float) -> list[Effect]:
        """The channel of a node is gone."""
        if self.over or not self._attendance.is_here(peer):
            return []
        self.story.heard(now, f"node {self._name(peer)} left")
        self._attendance.left(peer)
        self._called_at = min(self._called_at, now - CALL_EVERY_S + 0.5)
        effects = self._of_round(lambda round: round.left(peer, now))
        return effects + self._advance(now)

    def answered(self, peer: PeerId, key: Key, message: Message, now: float) -> list[Effect]:
        """A node's answer to an `Ask`."""
        if self.over:
            return []
        self._hears(peer, now, f"answered {key} with {message.tag!r}")
        if key != OFFER:
            effects = self._of_round(lambda round: round.answered(peer, key, message, now))
            return effects + self._advance(now)
        if not isinstance(message, Ok):
            return self.refused(peer, key, InvalidRequest(f"node {self._name(peer)} gave no answer to the offer of a job"), now)
        if not self._attendance.is_here(peer):
            return []
        self._attendance.agreed(peer)
        self._not_before = 0.0
        effects = self._of_round(lambda round: round.joined(peer, now))
        return effects + self._advance(now)

    def refused(self, peer: PeerId, key: Key, error: GridError, now: float) -> list[Effect]:
        """A node's error in place of an answer. Errors of channels that are gone do not count: `left` tells."""
        if self.over:
            return []
        if isinstance(error, DeadlineExceeded):
            self.story.heard(now, f"node {self._name(peer)} did not answer {key}: {error.message}")
        else:
            self._hears(peer, now, f"refused {key}: {error.message}")
        if key != OFFER:
            effects = self._of_round(lambda round: round.refused(peer, key, error, now))
            return effects + self._advance(now)
        self._attendance.refuses(peer, error)
        left = self._attendance.willing
        if left < self._quorum:
            why = f"node {self._name(peer)} refused: {error.message[:MAX_REASON]}"
            told = f"{counted(left, 'node')} could take part and {self._quorum} are needed; {why}"
            failed = type(error)(told, **error.details)
            return self._end(FAILED, told, now, error=failed)
        return self._advance(now)

    def worked(self, name: str, result: Any, now: float) -> list[Effect]:
        """A `Work` is done: `result` is what came out, or a `GridError`."""
        if self.over:
            return []
        self.story.heard(now, f"work {name!r} is done")
        if name == "apply":
            return self._applied(result, now) + self._advance(now)
        effects = self._of_round(lambda round: round.worked(name, result, now))
        return effects + self._advance(now)

    def kept(self, name: str, now: float) -> list[Effect]:
        """A `Keep` is done."""
        self.story.heard(now, f"{name!r} is kept")
        if name in self._keeping:
            report = self._keeping.pop(name)
            if report is not None:
                self.reports.append(report)
            tell: list[Effect] = [Tell(self.story.cause)]
            return tell if self.over else tell + self._advance(now)
        if self.over:
            return []
        effects = self._of_round(lambda round: round.kept(name, now))
        return effects + self._advance(now)

    def not_kept(self, error: GridError, now: float) -> list[Effect]:
        """The store cannot be written: a job that cannot be kept does not go on."""
        return [] if self.over else self._end(FAILED, error.message, now, error=error)

    def tick(self, now: float) -> list[Effect]:
        """Time has passed."""
        if self.over:
            return []
        if self._wall() > self.spec.expires:
            return self._end(FAILED, "the job has expired", now, error=InvalidRequest("the job's time is over; start a new one"))
        if self._round is not None and now - self._stuck_since >= (DEADLINES + 1) * self.spec.deadline_s:
            return self._give_up(now)
        effects = self._of_round(lambda round: round.tick(now))
        effects += self._advance(now) + self._call(now)
        if self.text != self._told:  # here alone: while things go on, there is something else to tell every moment
            self._told = self.text
            effects.append(Tell(self.story.cause))
        return effects

    def cancel(self, now: float) -> list[Effect]:
        """The client does not want it any more."""
        self.story.heard(now, "cancelled")
        return [] if self.over else self._end(CANCELLED, f"cancelled after {counted(self.progress.done, 'round')}", now)

    def _hears(self, peer: PeerId, now: float, what: str) -> None:
        """A node has done or said something."""
        self.story.heard(now, f"node {self._name(peer)} {what}")
        self._attendance.heard(peer, self.story.cause)

    # ------------------------------------------------------------ rounds

    def _call(self, now: float) -> list[Effect]:
        """Ask nodes that are away to open a channel, every few seconds."""
        away = self._attendance.away
        if self.over or not away or now < self._called_at + CALL_EVERY_S:
            return []
        self._called_at = now
        return [Call(self.story.cause, peer) for peer in away]

    def _advance(self, now: float) -> list[Effect]:
        """After every input: see to a round that is over, begin the next one, tell what is waited for."""
        effects: list[Effect] = []
        outcome = self._round.outcome if self._round is not None and self._applying is None else None
        if isinstance(outcome, Done):
            effects += self._apply(outcome, now)
        elif isinstance(outcome, Lost):
            effects += self._lost(outcome, now)
        # Nodes count an update without masks when it is asked for, so that its model must be kept by then.
        behind = 1 if self.spec.secure else 0
        if not self.over and self._round is None and self._applying is None and len(self._keeping) <= behind:
            effects += self._next(now)
        return effects

    @property
    def text(self) -> str:
        """What the job is doing, or why it ended."""
        if self.over:
            return self.progress.text
        return self._round.text if self._round is not None else self._idle

    def _next(self, now: float) -> list[Effect]:
        """Begin a round, if enough nodes are there."""
        ready = self._attendance.ready
        if now - self._stuck_since >= DEADLINES * self.spec.deadline_s:
            return self._give_up(now)
        gathering = not self._has_begun and self._gathers(now)
        if len(ready) < self._quorum or gathering:
            away = self._names(self._attendance.unready)
            needed = f"{len(ready)} of the {counted(self._quorum, 'node')} that are needed are there"
            self._idle = f"waits for nodes ({away}): {needed}" if not gathering else f"waits a moment for nodes ({away})"
            return []
        if now < self._not_before:
            return []
        return self._begin(now)

    def _gathers(self, now: float) -> bool:
        """Whether the first round waits for nodes beyond those that it needs: some for an answer, some to come at all."""
        unheard = self._attendance.unheard()
        patience = self.spec.deadline_s * SHORT
        if not any(map(self._attendance.is_here, unheard)):
            patience = min(GATHER_S, patience)
        return bool(unheard) and now < self._stuck_since + patience

    def _begin(self, now: float) -> list[Effect]:
        spec, at = self.spec, self.progress
        at.number += 1
        self._evaluating = at.done >= spec.rounds or at.is_stale(spec.stop)
        drawable = self._attendance.drawable(at.number, self._quorum)
        self._absent = set(self._attendance.nodes) - set(drawable)
        cohort = draw(spec, drawable, self._quorum, self._index, self._lost_in_row)
        plan = self._plan(cohort, at.number, now)
        began = at.state != RUNNING
        self._has_begun = True
        at.state, at.text = RUNNING, ""
        self._round_began = now
        self._round = self._make_round(plan)
        effects = self._of_round(lambda round: round.start(now))
        return [*effects, Tell(self.story.cause)] if began else effects

    def _of_round(self, tell: Callable[[AnyRound], list[Effect]]) -> list[Effect]:
        """Tell the round under way something. What it keeps of a sum is kept with what the sum is of."""
        if self._round is None:
            return []
        effects = tell(self._round)
        return [
            dataclasses.replace(effect, parts={**effect.parts, ROUND: self._about_round()})
            if isinstance(effect, Keep) and SUM in effect.parts
            else effect
            for effect in effects
        ]

    def _plan(self, cohort: tuple[PeerId, ...], number: int, now: float) -> Plan:
        spec = self.spec
        return Plan(
            job=spec.job,
            number=number,
            index=self._index,
            cohort=cohort,
            quorum=self._quorum,
            weights=self._model.frame,
            deadline=now + spec.deadline_s,
            deadline_s=spec.deadline_s,
            sums=len(spec.sums),
            first_attempt=1 + self.progress.runs * ATTEMPTS_OF_A_RUN,
            terms=self._terms(number) if spec.secure else None,
            name=self._name,
        )

    def _terms(self, number: int) -> Callable[[int, int], Terms]:
        size = 0 if self._evaluating else self._model.weights.size
        largest, known = self._largest(), self.progress.range
        return terms_of(self.spec, self._model, number, self._index, size=size, largest=largest, known=known)

    @property
    def _index(self) -> int:
        """Of the round under way, as nodes know it."""
        return 0 if self._evaluating else self.progress.done + 1

    def _make_round(self, plan: Plan) -> AnyRound:
        if self.spec.secure:
            return SecureRound(plan, self.story, self._attendance.ready)
        combine: Combine | None = getattr(self._strategy, "combine", None) if self._strategy.needs_single else None
        size = 0 if plan.evaluate_only else self._model.weights.size
        total = Sum(size, plan.sums, equal=self.spec.weighting == EQUAL, most=self._largest(), combine=combine)
        return SingleRound(plan, self.story, self._attendance.ready, total)

    def _resume_round(self, now: float, kept: Mapping[str, bytes]) -> list[Effect]:
        about = msgpack.unpackb(kept[ROUND])
        at = self.progress
        if about["done"] != at.done:
            return []
        at.number, self._evaluating = about["number"], about["evaluating"]
        at.state = RUNNING
        self._round_began = now
        plan = self._plan(tuple(PeerId(peer) for peer in about["cohort"]), at.number, now)
        self._round = SecureRound.resume(plan, self.story, kept, now)
        return self._of_round(lambda round: round.resumed(now)) + self._advance(now)

    def _about_round(self) -> bytes:
        assert self._round is not None
        plan = self._round.plan
        about = {"number": plan.number, "done": self.progress.done, "evaluating": plan.evaluate_only, "cohort": list(plan.cohort)}
        packed: bytes = msgpack.packb(about)
        return packed

    # ------------------------------------------------------------ the end of a round

    def _apply(self, done: Done, now: float) -> list[Effect]:
        assert self._round is not None
        self._applying = (done, self._evaluating, now)
        if self._evaluating:
            return self._applied(None, now)
        model, strategy, envelope, number = self._model, self._strategy, self.order.envelope, self.progress.done + 1

        def apply() -> Model:
            with np.errstate(over="ignore", invalid="ignore"):
                weights, state = strategy.apply(model.weights, done.summed.mean, model.state, number)
            if not np.isfinite(weights).all():
                raise InvalidRequest("the model has become NaN or infinite: lower the learning rate of nodes or strategy")
            return Model.of(weights, state, envelope)

        return [Work(self.story.cause, "apply", apply)]

    def _applied(self, result: Model | GridError | None, now: float) -> list[Effect]:
        assert self._round is not None and self._applying is not None
        (done, evaluating, _), self._applying = self._applying, None
        round_, self._round = self._round, None
        if isinstance(result, GridError):
            return self._end(FAILED, result.message, now, error=result)
        liars = [blame[0] for blame in done.summed.blamed if len(blame) == 1]
        self._attendance.ended(round_.plan.number, round_.late, done.nodes, liars)
        at, stop = self.progress, self.spec.stop
        self.rounds += 1
        evaluated = evaluating or self.spec.evaluates(round_.plan.index)
        metrics, rows, trained = metrics_of(self.spec, done.summed.weight, done.summed.sums, evaluated=evaluated)
        value = metrics[self.spec.metrics.index(stop.metric)] if metrics else None
        before, best_before = at.done, at.best
        best = at.judge(stop, value) if metrics else False
        unchanged = result is not None and result.digest == self._model.digest
        if result is not None:
            at.done += 1
            at.range = done.summed.next_range
            self._model = result
        report = RoundReport(
            round=at.done,
            metrics=metrics,
            nodes=len(done.nodes),
            examples=rows if evaluating else trained,
            seconds=now - self._round_began,
            bytes=round_.bytes,
            clipped=done.summed.clipped,
            best=best,
            text=self._report_text(done, round_, unchanged),
        )
        self._stuck_since, self._lost_in_row, self._reason = now, 0, None
        last = evaluating or unchanged
        if last:
            self._close(DONE, report.text if unchanged or at.done < self.spec.rounds else "")
        number = len(self.reports) + len(self._keeping)
        name = report_part(number)
        parts: dict[str, Any] = {name: pack_report(report), PROGRESS: at.to_bytes(), SUM: None, REVEALS: None, ROUND: None}
        if result is not None:
            parts |= self._model_parts()
            if before != at.best:
                parts[weights_part(before)] = None
        if best_before not in (-1, at.best, at.done):
            parts[weights_part(best_before)] = None
        self._keeping[name] = report
        effects: list[Effect] = [Keep(self.story.cause, name, parts)]
        return effects + self._dismiss(at.text or "the job is done") if last else effects

    def _model_parts(self) -> dict[str, Any]:
        model = self._model
        parts: dict[str, Any] = {weights_part(self.progress.done): model.weights.tobytes}
        if model.state:
            parts[STATE] = lambda: pack_arrays(model.state)
        return parts

    def _report_text(self, done: Done, round: AnyRound, unchanged: bool) -> str:
        said = []
        if round.plan.evaluate_only:
            early = self.progress.done < self.spec.rounds
            said.append("evaluation of the last model" + (f"; {self.spec.stop.metric} did not become better" if early else ""))
        if unchanged:
            said.append("the model does not change any more")
        missing = [peer for peer in self._attendance.nodes if peer in done.lost or peer in self._absent]
        if missing:
            said.append(f"without {self._names(missing)}")
        if done.summed.blamed:
            blamed = " and ".join(" or ".join(map(self._name, blame)) for blame in done.summed.blamed[:NAMED])
            said.append(f"with wrong shares of {blamed}, which were left out")
        returned = {peer: seconds for peer, seconds in round.returned.items() if peer in done.nodes}
        if returned:
            said.append(f"waited {max(returned.values()):.1f} s for {self._names(list(returned))}")
        if self._lost_in_row:
            said.append(f"after {counted(self._lost_in_row, 'round')} that came to nothing")
        return "; ".join(said)

    def _names(self, peers: Sequence[PeerId]) -> str:
        named = ", ".join(map(self._name, peers[:NAMED]))
        return f"{named} and {counted(len(peers) - NAMED, 'other')}" if len(peers) > NAMED else named

    def _lost(self, lost: Lost, now: float) -> list[Effect]:
        """Another one follows on the same model, at once where that may help."""
        assert self._round is not None
        self._attendance.ended(self._round.plan.number, self._round.late)
        self._round = None
        self.rounds_lost += 1
        if not (lost.error is not None and lost.error.details.get("rule") == MISFIT and self._widens()):
            self._lost_in_row += 1
            if self._reason is None or self._reason.error is None:
                self._reason = lost
        error = self._reason.error if self._reason is not None else None
        if self._lost_in_row >= REFUSALS and self._reason is not None and lost.error is not None and error is not None:
            text = self._reason.text
            if self._is_only_evaluation:
                return self._end(DONE, f"the last model could not be evaluated: {text}", now)
            return self._end(FAILED, text, now, error=type(error)(text, **error.details))
        self._not_before = 0.0 if self._lost_in_row <= 1 else now + min(self.spec.deadline_s / 4, 0.25 * 2**self._lost_in_row)
        self._idle = f"a round was lost: {lost.text}"
        parts = {PROGRESS: self.progress.to_bytes(), SUM: None, REVEALS: None, ROUND: None}
        return [Keep(self.story.cause, "lost", parts), Tell(self.story.cause)]

    def _widens(self) -> bool:
        """Whether there is another range to try after one that did not fit."""
        try:
            self.progress.range = widened(self.progress.range)
        except InvalidRequest:
            return False
        return True

    @property
    def _is_only_evaluation(self) -> bool:
        """Whether the model is there, and only its evaluation is not."""
        return self._evaluating and self.spec.rounds > 0 and self.progress.done > 0

    def _give_up(self, now: float) -> list[Effect]:
        away = self._attendance.unready
        names = self._names(away)
        text = f"no round has come to an end within {DEADLINES} times {self.spec.deadline_s:g} s"
        text += f"; missing: {names}" if away else f"; {self._idle}"
        if self._is_only_evaluation:
            return self._end(DONE, f"the last model could not be evaluated: {text}", now)
        node = away[0] if away else ""
        return self._end(FAILED, text, now, error=QuorumLost(text, node=str(node)))

    def _close(self, state: str, text: str, error: GridError | None = None) -> None:
        at = self.progress
        at.state, at.text, at.error, at.ended = state, text, error, self._wall()
        self._round = None

    def _end(self, state: str, text: str, now: float, *, error: GridError | None = None) -> list[Effect]:
        self._close(state, text, error)
        self.story.note(now, f"the job is over: {state}: {text}")
        self._applying = None
        parts = {PROGRESS: self.progress.to_bytes(), SUM: None, REVEALS: None, ROUND: None}
        self._keeping["end"] = None
        return [Keep(self.story.cause, "end", parts), *self._dismiss(text)]

    def _dismiss(self, text: str) -> list[Effect]:
        return [Dismiss(self.story.cause, peer, text) for peer in self._attendance.nodes]
