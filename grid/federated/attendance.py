"""Who of a job's nodes is there, has agreed to it or refused it, and who keeps rounds waiting.

A node that was there and said nothing until a round went on without it is set aside: for 4, 8, 16, ... rounds it is not drawn
while enough others are there, so that it costs a deadline now and then, and not in each round. A sign of life brings it back at
once, `FORGIVEN` times in a row: one that always answers a moment too late waits out its pauses as well. After a round that it
was in time for, it begins at 4 again. One that sent wrong shares is set aside as if it had been late that often: in a round
that can spare nobody it would cost the job.

Moments are numbers of stimuli (`effects.Story.cause`); rounds are counted as they are begun, lost ones included. Nothing of
this is kept: after a restart of the gateway all nodes are drawn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence

from grid.errors import GridError
from grid.ids import PeerId

FORGIVEN = 3
"""How often in a row a sign of life brings back a node that was late."""

LONGEST_PAUSE = 64
"""Rounds for which a node is set aside at most."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Late:
    """A node was late for this many rounds in a row, last at `moment`, and is to be drawn again from round `until` on."""

    times: int
    moment: int
    until: int


class Attendance:
    """Of `nodes`, in the order of the job."""

    def __init__(self, nodes: Sequence[PeerId]) -> None:
        self.nodes = tuple(nodes)
        self.refused: dict[PeerId, GridError] = {}
        self._here: set[PeerId] = set()
        self._ready: set[PeerId] = set()
        self._heard: dict[PeerId, int] = {}
        self._late: dict[PeerId, _Late] = {}
        self.busy: dict[PeerId, str] = {}
        """Who cannot take part now, and why."""

    # ------------------------------------------------------------ what happens

    def came(self, peer: PeerId) -> None:
        """It has a channel."""
        self._here.add(peer)

    def left(self, peer: PeerId) -> None:
        """Its channel is gone."""
        self._here.discard(peer)
        self._ready.discard(peer)
        self.busy.pop(peer, None)

    def agreed(self, peer: PeerId) -> None:
        """It takes part in the job."""
        self.refused.pop(peer, None)
        self.busy.pop(peer, None)
        self._ready.add(peer)

    def refuses(self, peer: PeerId, error: GridError) -> None:
        """It does not take part in the job."""
        self._ready.discard(peer)
        self.busy.pop(peer, None)
        self.refused[peer] = error

    def puts_off(self, peer: PeerId, why: str) -> None:
        """It has no room for the job now, and may have later."""
        self._ready.discard(peer)
        self.busy[peer] = why

    def heard(self, peer: PeerId, moment: int) -> None:
        """It has said something: a sign of life, whatever it was."""
        self._heard[peer] = moment

    def ended(
        self, number: int, late: Mapping[PeerId, int], took_part: Iterable[PeerId] = (), liars: Collection[PeerId] = ()
    ) -> None:
        """A round is over. `late`: who kept it waiting, and the moment at which it was given up; `liars` sent wrong shares."""
        for peer in took_part:
            if peer not in late and peer not in liars:
                self._late.pop(peer, None)
        for peer in {*late, *liars}:
            times = self._late[peer].times + 1 if peer in self._late else 1
            if peer in liars:
                times = max(times, FORGIVEN + 1)
            self._late[peer] = _Late(times, late.get(peer, 0), number + 1 + min(2 ** (times + 1), LONGEST_PAUSE))

    # ------------------------------------------------------------ who is there

    def is_here(self, peer: PeerId) -> bool:
        """Whether it has a channel, whatever it says of the job."""
        return peer in self._here

    @property
    def away(self) -> list[PeerId]:
        """Those without a channel."""
        return [peer for peer in self.nodes if peer not in self._here]

    @property
    def ready(self) -> list[PeerId]:
        """Those who are there and have agreed."""
        return [peer for peer in self.nodes if peer in self._ready]

    @property
    def unready(self) -> list[PeerId]:
        """All others."""
        return [peer for peer in self.nodes if peer not in self._ready]

    @property
    def reasons(self) -> dict[PeerId, str]:
        """What those said who do not take part."""
        return {peer: error.message for peer, error in self.refused.items()} | self.busy

    @property
    def willing(self) -> int:
        """How many may take part, now or later."""
        return len(self.nodes) - len(self.refused)

    def unheard(self) -> list[PeerId]:
        """Those who have neither agreed nor refused, nor said that they are busy."""
        return [peer for peer in self.unready if peer not in self.refused and peer not in self.busy]

    def is_aside(self, peer: PeerId, number: int) -> bool:
        """Whether a round of this number should do without it."""
        late = self._late.get(peer)
        if late is None or number >= late.until:
            return False
        return late.times > FORGIVEN or self._heard.get(peer, 0) <= late.moment

    def drawable(self, number: int, quorum: int) -> list[PeerId]:
        """From whom a round is drawn: those who are ready, without those set aside where the others are `quorum` or more."""
        prompt = [peer for peer in self.ready if not self.is_aside(peer, number)]
        return prompt if len(prompt) >= quorum else self.ready
