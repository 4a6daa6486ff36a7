"""What a job has come to: the model as it stands, the reports, and what is kept of them after each round."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from grid.display import counted
from grid.errors import InvalidRequest
from grid.federated.effects import Part
from grid.federated.naming import NAMED, Name, names_of
from grid.federated.orders import Model, Order, metrics_of
from grid.federated.progress import (
    PROGRESS,
    REVEALS,
    ROUND,
    STATE,
    SUM,
    Progress,
    pack_arrays,
    pack_report,
    report_part,
    weights_part,
)
from grid.federated.rounds import MAX_REASON, AnyRound, Done
from grid.federated.secagg.quantiser import REFUSALS, Range
from grid.federated.strategy import Strategy
from grid.ids import PeerId
from grid.wire.jobs import RoundReport

Parts = dict[str, Part]

TOLD = 3
"""Nodes of which a report says why they took no part."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ended:
    """A round that ended well. `new`: the model that came of it, None of an evaluation.

    `absent`: nodes that it was not drawn from. `reasons`: why nodes took no part, as far as that is known. `losses`: rounds in
    a row that were lost before it.
    """

    round: AnyRound
    done: Done
    new: Model | None
    absent: Collection[PeerId]
    reasons: Mapping[PeerId, str]
    losses: int
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """What is kept of a round under a name. `last`: the job is over with it, with this `text`."""

    name: str
    report: RoundReport
    parts: Parts
    last: bool
    text: str


class Ledger:
    """`reports`: those that are kept."""

    def __init__(self, order: Order, model: Model, progress: Progress, reports: Sequence[RoundReport], name: Name) -> None:
        self.model = model
        self.progress = progress
        self.reports = list(reports)
        self._spec, self._envelope = order.spec, order.envelope
        self._name = name
        self._keeping: dict[str, RoundReport | None] = {}
        self._reasons: Mapping[PeerId, str] = {}
        """Those that the last report knew of: they are told once."""

    # ------------------------------------------------------------ what is on its way to the store

    @property
    def unkept(self) -> int:
        """Reports, and the end, that are not kept yet."""
        return len(self._keeping)

    def keeps(self, name: str, report: RoundReport | None = None) -> None:
        """This is on its way: a report, or the end."""
        self._keeping[name] = report

    def kept(self, name: str) -> bool:
        """It is there, if it was of these: from now on its report may be told."""
        if name not in self._keeping:
            return False
        report = self._keeping.pop(name)
        if report is not None:
            self.reports.append(report)
        return True

    def without_round(self) -> Parts:
        """Where the job stands, and nothing of a round."""
        return {PROGRESS: self.progress.to_bytes(), SUM: None, REVEALS: None, ROUND: None}

    def model_parts(self) -> Parts:
        """The model and the strategy's state."""
        model = self.model
        parts: Parts = {weights_part(self.progress.done): model.weights.tobytes}
        if model.state:
            parts[STATE] = lambda: pack_arrays(model.state)
        return parts

    # ------------------------------------------------------------ rounds

    def applied(self, strategy: Strategy, done: Done) -> Model:
        """The model that comes of a sum. `InvalidRequest` where it is not finite. For a thread."""
        model, number = self.model, self.progress.done + 1
        with np.errstate(over="ignore", invalid="ignore"):
            weights, state = strategy.apply(model.weights, done.summed.mean, model.state, number)
        if not np.isfinite(weights).all():
            raise InvalidRequest("the model has become NaN or infinite: lower the learning rate of nodes or strategy")
        return Model.of(weights, state, self._envelope)

    def enter(self, ended: Ended) -> Entry:
        """A round has ended: its model is the present one, and what is told and kept of it."""
        at, spec, summed, new = self.progress, self._spec, ended.done.summed, ended.new
        evaluated = new is None or spec.evaluates(ended.round.plan.index)
        metrics, rows, trained = metrics_of(spec, summed.weight, summed.sums, evaluated=evaluated)
        value = metrics[spec.metrics.index(spec.stop.metric)] if metrics else None
        before, best_before = at.done, at.best
        best = at.judge(spec.stop, value) if metrics else False
        unchanged = new is not None and new.digest == self.model.digest
        if new is not None:
            at.done += 1
            if at.range is not None and at.range.coarsest == 0.0:
                at.wide = at.range.clip
            at.range = summed.next_range if at.misfits < REFUSALS else Range(at.wide, 0.0)
            self.model = new
        report = RoundReport(
            round=at.done,
            metrics=metrics,
            nodes=len(ended.done.nodes),
            examples=rows if new is None else trained,
            seconds=ended.seconds,
            bytes=ended.round.bytes,
            clipped=summed.clipped,
            best=best,
            text=self._text(ended, unchanged),
        )
        name = report_part(len(self.reports) + len(self._keeping))
        parts: Parts = {name: pack_report(report), **self.without_round()}
        if new is not None:
            parts |= self.model_parts()
            if before != at.best:
                parts[weights_part(before)] = None
        if best_before not in (-1, at.best, at.done):
            parts[weights_part(best_before)] = None
        text = report.text if unchanged or at.done < spec.rounds else ""
        return Entry(name, report, parts, new is None or unchanged, text)

    def _text(self, ended: Ended, unchanged: bool) -> str:
        spec, done, round_ = self._spec, ended.done, ended.round
        said = []
        if ended.new is None:
            early = self.progress.done < spec.rounds
            said.append("evaluation of the last model" + (f"; {spec.stop.metric} did not become better" if early else ""))
        if unchanged:
            said.append("the model does not change any more")
        missing = [peer for peer in spec.nodes if peer in done.lost or peer in ended.absent]
        if missing:
            known = {peer: ended.reasons[peer][:MAX_REASON] for peer in missing if peer in ended.reasons}
            new = [peer for peer in known if known[peer] != self._reasons.get(peer)][:TOLD]
            why = {peer: f" ({known[peer]})" for peer in new}
            said.append(f"without {names_of(missing, lambda peer: self._name(peer) + why.get(peer, ''))}")
            self._reasons = known
        if done.summed.blamed:
            blamed = " and ".join(" or ".join(map(self._name, blame)) for blame in done.summed.blamed[:NAMED])
            said.append(f"with wrong shares of {blamed}, which were left out")
        returned = {peer: seconds for peer, seconds in round_.returned.items() if peer in done.nodes}
        if returned:
            said.append(f"waited {max(returned.values()):.1f} s for {names_of(list(returned), self._name)}")
        if ended.losses:
            said.append(f"after {counted(ended.losses, 'round')} that came to nothing")
        return "; ".join(said)
