"""`grid doctor node`: what a node's owner can get wrong, before the node starts or while it runs."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

from grid.clock import Clock
from grid.crypto.identity import LocalIdentity, Token, Trust
from grid.doctor.findings import Finding, ok, unknown, warning, wrong
from grid.doctor.keeping import check_card, check_state, in_use, nothing_kept, read_identity
from grid.doctor.machine import check_disk, check_files, check_port, check_versions
from grid.doctor.reach import Way
from grid.errors import GridError, InvalidRequest
from grid.node.checking import check_folder
from grid.settings import NodeSettings
from grid.transport.probe import touch
from grid.wire.address import parse_address
from grid.wire.messages import Greeting


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NodeCase:
    """A node as its command line would start it. `token` where --join was given; `name` None where it is not known."""

    settings: NodeSettings
    name: str | None
    token: Token | None
    store: str


async def check_node(case: NodeCase, way: Way, clock: Clock) -> list[Finding]:
    """All that a node needs: versions, room, files, data, keys, ports, and the way to its gateway."""
    settings, state = case.settings, case.settings.state
    me, said = read_identity(state, case.name, "node")
    found = [*check_versions(), *check_files(), *check_disk(state or Path.cwd()), *check_state(state, case.store), *said]
    if me is not None:
        found += check_card(me, clock.wall())
    elif not said:
        found += _check_token(case, clock)
    found += await asyncio.to_thread(check_data, settings.data)
    found += await _check_ports(settings, running=in_use(state))
    return [*found, *await _check_way(case, way, me, clock)]


def _check_token(case: NodeCase, clock: Clock) -> list[Finding]:
    if case.token is None:
        if case.settings.dev:
            return [nothing_kept("node")]
        do = "give it --join TOKEN, as `grid enroll` printed it; or --dev to try things out on one machine"
        return [wrong("key", "no identity is kept, and no token makes one", why="a grid talks to members alone", do=do)]
    try:
        made = LocalIdentity.create(name=case.name, role="node", clock=clock, token=case.token)
    except GridError as error:
        return [wrong("token", error.message, why="the token makes the node's identity", do="have one made for this node")]
    return check_card(made, clock.wall())


def check_data(folder: Path | None) -> list[Finding]:
    """Whether every dataset of the folder can be read as its description says. All rows are read, and nothing of them is kept."""
    if folder is None:
        do = "say --data DIR, a folder with NAME.toml beside each data file"
        return [warning("data", "no data folder", why="the node offers no dataset", do=do)]
    try:
        report = check_folder(folder)
    except OSError as error:
        why, do = "the node cannot read its data", f"check who may read {folder}, and what is in it"
        return [wrong("data", f"{folder}: {error.strerror}", why=why, do=do)]
    errors = [*report.errors, *(error for one in report.datasets for error in one.errors)]
    if errors:
        why = "the node does not start with a dataset that is not as described"
        do = f"mend the file, or its description, at the place named; `grid data check {folder}` lists all that is wrong"
        return [wrong("data", errors[0], why=why, do=do)]
    cards = [one.card for one in report.datasets if one.card is not None]
    return [ok("data", ", ".join(f"{card.name} ({card.rows} rows)" for card in cards))]


async def _check_ports(settings: NodeSettings, *, running: bool) -> list[Finding]:
    found: list[Finding] = []
    for flag, text in (("--listen", settings.listen), ("--health", settings.health)):
        if not text:
            continue
        try:
            host, port = parse_address(text, listening=True)
        except InvalidRequest as error:
            found.append(wrong("port", f"{flag}: {error.message}", why="one listens at an address", do="write HOST:PORT"))
            continue
        found += check_port(host, port, flag, ours=running)
        if flag == "--listen" and running:
            found += await _check_announced(settings.announce or text)
    return found


async def _check_announced(address: str) -> list[Finding]:
    """Whether the running node is reached at the address that others are given; from this machine, which is all one can try."""
    try:
        host, port = parse_address(address)
        await touch(host, port)
    except (GridError, OSError) as error:
        what = f"{address} is not reached, even from this machine: {getattr(error, 'strerror', None) or error or 'no answer'}"
        do = "say with --announce where others reach --listen, and let that through the firewall"
        return [warning("announced address", what, why="others go through the gateway then, which is slower and as safe", do=do)]
    return [ok("announced address", f"{address} is reached from this machine")]


async def _check_way(case: NodeCase, way: Way, me: LocalIdentity | None, clock: Clock) -> list[Finding]:
    greeting = await way.walk()
    if greeting is None:
        return way.findings
    if in_use(case.settings.state):
        # To join under its keys would throw the running node out.
        return [*way.findings, *_looked_at(greeting, _trust(case, me)), unknown("joining", "not tried: the node runs already")]

    def choose(greeting: Greeting) -> tuple[LocalIdentity, Trust] | None:
        token = None if me is not None and me.enrolment is not None else case.token
        mine = me or LocalIdentity.create(name=case.name or "doctor", role="node", clock=clock, token=token)
        if mine.enrolment is None and not case.settings.dev:
            return None
        return mine, _trust(case, mine)

    async with way.joined(choose):
        return way.findings


def _trust(case: NodeCase, me: LocalIdentity | None) -> Trust:
    """Whom the node believes; nothing is remembered of what is met here."""
    enrolment = me.enrolment if me is not None else case.token.enrolment if case.token is not None else None
    return Trust.dev() if enrolment is None else Trust.rooted(enrolment.root)


def _looked_at(greeting: Greeting, trust: Trust) -> list[Finding]:
    try:
        trust.check_greeting(greeting, greeting.wall)
    except GridError as error:
        return [wrong("grid", error.message, why="the node and this gateway are of different grids", do="check --gateway")]
    return [ok("grid", "the gateway is of this node's grid")]
