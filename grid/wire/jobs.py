"""The messages of federated jobs: between a client and the gateway's coordinator, and between the coordinator and nodes.

They travel over *job channels*: sealed sessions that end at the gateway, at a path of their own (`rpc.job_channel`). A node is
called to one by `CallIn` on its hop. What a client asks for is signed by it (`federated.spec`), and what nodes tell each other
in a round of secure aggregation is signed or sealed by them (`federated.secagg`): the gateway only carries it.

`round` counts from 1, `attempt` from 1 within a round. Each request of a round is answered as it was the first time when it
comes again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from grid.ids import JobId, PeerId
from grid.wire.messages import Buffer, ErrorInfo, Message, TensorFrame, message, record

# ---------------------------------------------------------------- hop


@message("call-in")
class CallIn(Message):
    """Gateway -> node, one way, on the hop: open a job channel, a job waits for this node there."""


# ---------------------------------------------------------------- job channel: clients


@message("start-job")
class StartJob(Message):
    """Client -> gateway: carry out a job. Reply: JobStatus. Errors: InvalidRequest, NotFound, QuotaExceeded.

    One that comes again, because its answer was lost, starts nothing.
    `envelope` is the signed `JobSpec`, `card` its client's card. `train` and `evaluate` are the two plans in their canonical
    encoding, `strategy` that of a strategy of the user's own, or b"". `weights` is the model as one vector.
    """

    envelope: bytes
    card: bytes
    train: Buffer
    evaluate: Buffer
    weights: TensorFrame
    strategy: Buffer = b""


@record
class RoundReport:
    """What is told of one round: sums over nodes only.

    `metrics` are weighted means over the rows of all nodes that took part, in the order of the job's names; of the model that
    the round began with, since it is what nodes evaluate. The last report has the final model's, with `nodes` and `examples` of
    that evaluation. Empty where it was not evaluated, None for what is not finite. `nodes` is how many updates were summed,
    `examples` how many rows they stand for, `clipped` how many coordinates lay outside of the quantiser's range. `seconds`:
    what the round took; `bytes`: what went to and came from nodes for it. `text` says what else is worth knowing, such as who
    was lost.
    """

    round: int
    metrics: tuple[float | None, ...]
    nodes: int
    examples: int
    seconds: float
    bytes: int
    clipped: int = 0
    epsilon: float | None = None
    best: bool = False
    text: str = ""

    def facts(self, names: Sequence[str]) -> dict[str, Any]:
        """All of it for programs, as JSON holds it; its metrics by the job's `names`."""
        return {**_facts(self), "metrics": dict(zip(names, self.metrics, strict=False))}


@record
class JobCard:
    """What is known of a job. `state`: "waiting" (for nodes), "running", "done", "failed" or "cancelled".

    `round` is the last finished round of `rounds`. `started` and `ended` are wall seconds, `ended` 0 while it goes on. `text`
    says what it waits for, or why it ended. `secure`: whether its updates are summed under masks. `nodes` are those that it
    asked for. `metrics` are the names of what is evaluated.
    """

    id: JobId
    name: str
    client: PeerId
    state: str
    round: int
    rounds: int
    nodes: tuple[PeerId, ...]
    secure: bool
    strategy: str
    started: float
    metrics: tuple[str, ...] = ()
    ended: float = 0.0
    text: str = ""
    error: ErrorInfo | None = None

    def facts(self) -> dict[str, Any]:
        """All of it for programs, as JSON holds it."""
        error = None if self.error is None else {"code": self.error.code, "message": self.error.message}
        return {**_facts(self), "nodes": list(self.nodes), "metrics": list(self.metrics), "error": error}


def _facts(card: RoundReport | JobCard) -> dict[str, Any]:
    return {field.name: getattr(card, field.name) for field in dataclasses.fields(card)}


@message("watch-job")
class WatchJob(Message):
    """Client -> gateway: tell me of a job from now on, and of all its rounds after the first `after` reports. Reply: JobStatus.

    `JobProgress` comes until the job has ended. Errors: NotFound.
    """

    job: JobId
    after: int = 0


@message("job-status")
class JobStatus(Message):
    """Answer to StartJob, WatchJob and CancelJob."""

    card: JobCard


@message("job-progress")
class JobProgress(Message):
    """Gateway -> client, one way: a change. `reports` are new ones, `first` the number of the first of them, from 0.

    `more`: further reports follow at once, so that the end of the job, if `card` tells it, is not all that there is.
    """

    card: JobCard
    first: int
    reports: tuple[RoundReport, ...]
    more: bool = False


@message("cancel-job")
class CancelJob(Message):
    """Client -> gateway: end a job after what is under way. Reply: JobStatus. Errors: NotFound."""

    job: JobId


@message("fetch-weights")
class FetchWeights(Message):
    """Client -> gateway: the model of a job. Reply: JobWeights. `which`: "last", or "best" by the metric of its `Stop`."""

    job: JobId
    which: str = "last"


@message("job-weights")
class JobWeights(Message):
    """Answer to FetchWeights: the vector after round `round`."""

    round: int
    weights: TensorFrame


@message("list-jobs")
class ListJobs(Message):
    """Client -> gateway. Reply: JobList: the jobs of this client, in a --dev grid those of all, the newest first."""


@message("job-list")
class JobList(Message):
    """Answer to ListJobs."""

    jobs: tuple[JobCard, ...]


# ---------------------------------------------------------------- job channel: nodes


@message("offer-job")
class OfferJob(Message):
    """Gateway -> node: take part in a job, as its client has signed it. Reply: Ok. Errors: why this node does not.

    Fields as in StartJob.
    """

    job: JobId
    envelope: bytes
    card: bytes
    train: Buffer
    evaluate: Buffer


@message("begin-round")
class BeginRound(Message):
    """Gateway -> node, leg 0: `terms` of the round (`federated.secagg`; b"" without secure aggregation) and the model.

    `round` is a number for this round alone. `index` says which of the rounds that the client has signed it is, from 1: lost ones
    do not count, and what is drawn, scheduled and evaluated follows from it. 0: nothing is trained, metrics alone are summed.
    Reply: RoundKeys, or SingleUpdate without secure aggregation. A further attempt of a round comes without `weights` to those
    who have them; what they train goes on.
    """

    job: JobId
    round: int
    attempt: int
    index: int
    terms: bytes
    deadline_s: float
    weights: TensorFrame | None = None

    @property
    def evaluate_only(self) -> bool:
        return not self.index


@message("round-keys")
class RoundKeys(Message):
    """Answer to BeginRound: the node's fresh keys, signed."""

    envelope: bytes


@message("round-roster")
class RoundRoster(Message):
    """Gateway -> node, leg 1: the signed keys of all who take part. Reply: SealedShares. Errors: which rule the roster breaks."""

    job: JobId
    round: int
    attempt: int
    keys: tuple[bytes, ...]


@record
class Sealed:
    """Bytes that only `peer` can read, or that only it can have written."""

    peer: PeerId
    data: bytes


@message("sealed-shares")
class SealedShares(Message):
    """Answer to RoundRoster: for each neighbour of the node shares of its secrets."""

    shares: tuple[Sealed, ...]


@message("round-shares")
class RoundShares(Message):
    """Gateway -> node, leg 2: the shares that its neighbours sealed for it. Reply, once it has trained: MaskedInput."""

    job: JobId
    round: int
    attempt: int
    shares: tuple[Sealed, ...]


@message("masked-input")
class MaskedInput(Message):
    """Answer to RoundShares: the node's vector under masks, "i4" or "i8" elements mod 2**32 or 2**64."""

    vector: TensorFrame


@message("round-survivors")
class RoundSurvivors(Message):
    """Gateway -> node, leg 3: whose masked inputs are in the sum. Reply: RoundConsent."""

    job: JobId
    round: int
    attempt: int
    survivors: tuple[PeerId, ...]


@message("round-consent")
class RoundConsent(Message):
    """Answer to RoundSurvivors: a signature over survivors, model and round."""

    signature: bytes


@message("round-unmask")
class RoundUnmask(Message):
    """Gateway -> node, leg 4: the signatures of the survivors. Reply: RoundReveal."""

    job: JobId
    round: int
    attempt: int
    consents: tuple[Sealed, ...]


@message("round-reveal")
class RoundReveal(Message):
    """Answer to RoundUnmask: for each neighbour one share: of its self-mask where it survived, of its key where it was lost."""

    shares: tuple[Sealed, ...]


@message("single-update")
class SingleUpdate(Message):
    """Answer to BeginRound without secure aggregation: the update, how many examples it stands for, and sums of metrics."""

    examples: int
    metrics: tuple[float, ...]
    update: TensorFrame | None = None


@message("end-job")
class EndJob(Message):
    """Gateway -> node, one way: the job is over, or goes on without this node."""

    job: JobId
    text: str = ""
