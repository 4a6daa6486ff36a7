"""One job from its offer to its end, as the gateway drives it: a state machine without I/O.

    waiting ──enough nodes have agreed──> running: round, round, ..., evaluation of the last model ──> done
                                             └── no round ends within `DEADLINES` deadlines ──> failed

It offers the job to its nodes, hands events to the round under way (`rounds`), and decides what follows from its end. What a
round is to be is `planning`'s, who of the nodes is there `attendance`'s, what lost rounds lead to `setbacks`', and what came of
those that ended well `ledger`'s. Reports are told when they are kept. A round that is lost is followed by another one on the same
model, under another number. Inputs are methods with the time (monotonic seconds); each returns the effects to carry out, in
order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from grid.display import counted
from grid.errors import DeadlineExceeded, GridError, InvalidRequest, QuorumLost, QuotaExceeded
from grid.federated.attendance import Attendance
from grid.federated.effects import OFFER, Ask, Call, Dismiss, Effect, Keep, Key, Story, Tell, Work
from grid.federated.ledger import Ended, Ledger
from grid.federated.naming import Name, names_of
from grid.federated.orders import Model, Order
from grid.federated.planning import Planner, about_round
from grid.federated.progress import CANCELLED, DONE, FAILED, OVER, PROGRESS, ROUND, RUNNING, START, SUM, Progress
from grid.federated.rounds import MAX_REASON, SHORT, AnyRound, Done, Lost
from grid.federated.setbacks import Setbacks
from grid.federated.strategy import Strategy
from grid.ids import PeerId
from grid.wire.jobs import JobCard, OfferJob, RoundReport
from grid.wire.messages import Message, Ok

DEADLINES = 3
"""How many deadlines of a round a job may go without finishing one."""

ROOM = "max_trainings"
"""What a refused offer names as its `limit` where there is no room for the job now: no other one gets better by itself."""

TOLD = 3
"""Of how many busy nodes a text gives the reason."""

CALL_EVERY_S = 5.0
GATHER_S = 5.0
"""How long the first round waits for nodes that have not come, where enough are there. Those that have come get more time."""


class Coordination:
    """`largest`: an upper bound of the examples of any node. `name`: how people call a node."""

    def __init__(
        self,
        order: Order,
        strategy: Strategy,
        model: Model,
        *,
        progress: Progress,
        reports: Sequence[RoundReport] = (),
        largest: Callable[[], int] = lambda: 1,
        name: Name = str,
        wall: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.order = order
        self.spec = order.spec
        self.progress = progress
        self.story = Story(f"job {self.spec.job}")
        self.rounds = self.rounds_lost = 0
        """How many have ended well, and not, in this process."""
        self._strategy = strategy
        self._name, self._wall = name, wall
        self._ledger = Ledger(order, model, progress, reports, name)
        self._planner = Planner(self.spec, strategy, largest, name)
        self._attendance = Attendance(self.spec.nodes)
        self._setbacks = Setbacks(self.spec.deadline_s)
        self._quorum = self._planner.quorum
        self._absent: set[PeerId] = set()
        self._round: AnyRound | None = None
        self._evaluating = False
        self._applying: Done | None = None
        self._has_begun = False
        self._round_began = self._stuck_since = 0.0
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
        return self.over and not self._ledger.unkept

    @property
    def model(self) -> Model:
        """The model after `progress.done` rounds."""
        return self._ledger.model

    @property
    def reports(self) -> list[RoundReport]:
        """Those that are kept, in order."""
        return self._ledger.reports

    @property
    def text(self) -> str:
        """What the job is doing, or why it ended."""
        if self.over:
            return self.progress.text
        return self._round.text if self._round is not None else self._idle

    def card(self) -> JobCard:
        """What is known of it. It is told as running until its end is kept: who watches it stops at the end."""
        card = self.progress.card(self.spec, text=self.text)
        return dataclasses.replace(card, state=RUNNING, ended=0.0) if self.over and self._ledger.unkept else card

    # ------------------------------------------------------------ inputs

    def start(self, now: float, start: bytes = b"") -> list[Effect]:
        """A new job: keep it, and call its nodes. `start` is what a gateway needs to read the order again."""
        self.story.heard(now, "the job has come")
        self.progress.started = self._wall()
        self._stuck_since = now
        parts = {START: start, PROGRESS: self.progress.to_bytes(), **self._ledger.model_parts()}
        return [Keep(self.story.cause, START, parts), *self._call(now)]

    def resume(self, now: float, kept: Mapping[str, bytes]) -> list[Effect]:
        """A job that another gateway process has driven. `kept` are its parts `SUM`, `ROUND` and `REVEALS`, if there are any."""
        self.story.heard(now, "the gateway was started again")
        self.progress.runs += 1
        self._stuck_since = now
        effects: list[Effect] = [Keep(self.story.cause, "again", {PROGRESS: self.progress.to_bytes()})]
        if not self.over:
            effects += self._resume_round(now, kept)
        return effects + self._call(now)

    def came(self, peer: PeerId, now: float) -> list[Effect]:
        """A node has opened a job channel, perhaps in place of one that we have not seen end."""
        if self.over or peer not in self._attendance.nodes:
            return []
        self._hears(peer, now, "came")
        self._attendance.came(peer)
        return [self._offer(peer)]

    def _offer(self, peer: PeerId) -> Effect:
        order = self.order
        offer = OfferJob(job=self.spec.job, envelope=order.envelope, card=order.card, train=order.train, evaluate=order.evaluate)
        return Ask(self.story.cause, peer, OFFER, offer, self.spec.deadline_s)

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
        self._setbacks.hurry()
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
        if isinstance(error, QuotaExceeded) and error.details.get("limit") == ROOM:  # other jobs train there at present
            self._attendance.puts_off(peer, error.message[:MAX_REASON])
            return self._advance(now)
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
        if self._ledger.kept(name):
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
        """Ask nodes that are away to open a channel, and those that were busy once more, every few seconds."""
        away, busy = self._attendance.away, list(self._attendance.busy)
        if self.over or not (away or busy) or now < self._called_at + CALL_EVERY_S:
            return []
        self._called_at = now
        return [*(Call(self.story.cause, peer) for peer in away), *map(self._offer, busy)]

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
        if not self.over and self._round is None and self._applying is None and self._ledger.unkept <= behind:
            effects += self._next(now)
        return effects

    def _next(self, now: float) -> list[Effect]:
        """Begin a round, if enough nodes are there."""
        ready = self._attendance.ready
        if now - self._stuck_since >= DEADLINES * self.spec.deadline_s:
            return self._give_up(now)
        gathering = not self._has_begun and self._gathers(now)
        if len(ready) < self._quorum or gathering:
            away = names_of(self._attendance.unready, self._name)
            needed = f"{len(ready)} of the {counted(self._quorum, 'node')} that are needed are there{self._busy()}"
            self._idle = f"waits for nodes ({away}): {needed}" if not gathering else f"waits a moment for nodes ({away})"
            return []
        return [] if self._setbacks.rests(now) else self._begin(now)

    def _busy(self) -> str:
        """What the first of those say that have no room now."""
        told = [f"; {self._name(peer)}: {why}" for peer, why in self._attendance.busy.items()]
        return "".join(told[:TOLD])

    def _gathers(self, now: float) -> bool:
        """Whether the first round waits for nodes beyond those that it needs: some for an answer, some to come at all."""
        unheard = self._attendance.unheard()
        patience = self.spec.deadline_s * SHORT
        if not any(map(self._attendance.is_here, unheard)):
            patience = min(GATHER_S, patience)
        return bool(unheard) and now < self._stuck_since + patience

    def _begin(self, now: float) -> list[Effect]:
        at = self.progress
        plan = self._planner.next(at, self.model, self._attendance, self._setbacks.in_row, now)
        self._absent = set(self._attendance.nodes) - set(self._attendance.drawable(plan.number, self._quorum))
        began = at.state != RUNNING
        self._has_begun = True
        at.state, at.text = RUNNING, ""
        self._enter(self._planner.round(plan, self.story, self.model, self._attendance), now)
        effects = self._of_round(lambda round: round.start(now))
        return [*effects, Tell(self.story.cause)] if began else effects

    def _resume_round(self, now: float, kept: Mapping[str, bytes]) -> list[Effect]:
        round_ = self._planner.resumed(self.progress, self.model, kept, self.story, now)
        if round_ is None:
            return []
        self.progress.state = RUNNING
        self._enter(round_, now)
        return self._of_round(lambda round: round.resumed(now)) + self._advance(now)

    def _enter(self, round_: AnyRound, now: float) -> None:
        self._round, self._evaluating, self._round_began = round_, round_.plan.evaluate_only, now

    def _of_round(self, tell: Callable[[AnyRound], list[Effect]]) -> list[Effect]:
        """Tell the round under way something. What it keeps of a sum is kept with what the sum is of."""
        if self._round is None:
            return []
        plan = self._round.plan
        effects = tell(self._round)
        return [
            dataclasses.replace(effect, parts={**effect.parts, ROUND: about_round(plan, self.progress.done)})
            if isinstance(effect, Keep) and SUM in effect.parts
            else effect
            for effect in effects
        ]

    # ------------------------------------------------------------ the end of a round

    def _apply(self, done: Done, now: float) -> list[Effect]:
        self._applying = done
        if self._evaluating:
            return self._applied(None, now)
        return [Work(self.story.cause, "apply", lambda: self._ledger.applied(self._strategy, done))]

    def _applied(self, result: Model | GridError | None, now: float) -> list[Effect]:
        assert self._round is not None and self._applying is not None
        done, self._applying = self._applying, None
        round_, self._round = self._round, None
        if isinstance(result, GridError):
            return self._end(FAILED, result.message, now, error=result)
        liars = [blame[0] for blame in done.summed.blamed if len(blame) == 1]
        self._attendance.ended(round_.plan.number, round_.late, done.nodes, liars)
        self.rounds += 1
        ended = Ended(
            round=round_,
            done=done,
            new=result,
            absent=self._absent,
            reasons={**self._attendance.reasons, **round_.out},
            losses=self._setbacks.in_row,
            seconds=now - self._round_began,
        )
        entry = self._ledger.enter(ended)
        self._stuck_since = now
        self._setbacks.forget()
        parts = entry.parts
        if entry.last:
            self._close(DONE, entry.text)
            parts = {**parts, PROGRESS: self.progress.to_bytes()}  # with its end
        self._ledger.keeps(entry.name, entry.report)
        effects: list[Effect] = [Keep(self.story.cause, entry.name, parts)]
        return effects + self._dismiss(entry.text or "the job is done") if entry.last else effects

    def _lost(self, lost: Lost, now: float) -> list[Effect]:
        """Another one follows on the same model, at once where that may help."""
        assert self._round is not None
        self._attendance.ended(self._round.plan.number, self._round.late)
        self._round = None
        self.rounds_lost += 1
        error = self._setbacks.add(lost, self.progress, now)
        if error is not None:
            return self._fail(error, now)
        self._idle = f"a round was lost: {lost.text}"
        return [Keep(self.story.cause, "lost", self._ledger.without_round()), Tell(self.story.cause)]

    # ------------------------------------------------------------ the end of the job

    def _give_up(self, now: float) -> list[Effect]:
        away = self._attendance.unready
        text = f"no round has come to an end within {DEADLINES} times {self.spec.deadline_s:g} s"
        text += f"; missing: {names_of(away, self._name)}{self._busy()}" if away else f"; {self.text}"
        return self._fail(QuorumLost(text, node=str(away[0]) if away else ""), now)

    def _fail(self, error: GridError, now: float) -> list[Effect]:
        """No more rounds: that is a failure, unless the model is there and only its evaluation is not."""
        if self._evaluating and self.spec.rounds > 0 and self.progress.done > 0:
            return self._end(DONE, f"the last model could not be evaluated: {error.message}", now)
        return self._end(FAILED, error.message, now, error=error)

    def _close(self, state: str, text: str, error: GridError | None = None) -> None:
        at = self.progress
        at.state, at.text, at.error, at.ended = state, text, error, self._wall()
        self._round = None

    def _end(self, state: str, text: str, now: float, *, error: GridError | None = None) -> list[Effect]:
        self._close(state, text, error)
        self.story.note(now, f"the job is over: {state}: {text}")
        self._applying = None
        self._ledger.keeps("end")
        return [Keep(self.story.cause, "end", self._ledger.without_round()), *self._dismiss(text)]

    def _dismiss(self, text: str) -> list[Effect]:
        return [Dismiss(self.story.cause, peer, text) for peer in self._attendance.nodes]
