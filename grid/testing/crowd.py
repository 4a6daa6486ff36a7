"""A real gateway with fake peers, in one loop: real sessions over memory transports, and no node or client behind them.

For tests of the gateway, of links, and of what watches a gateway.
"""


from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from grid.clock import SystemClock
from grid.crypto.identity import LocalIdentity, Trust, join_statement, verify_welcome
from grid.gateway.app import Gateway
from grid.ids import PeerId
from grid.rpc.dispatch import Handlers
from grid.rpc.links import Links
from grid.rpc.peer import Peer
from grid.settings import GatewaySettings
from grid.transport.base import Transport
from grid.transport.memory import memory_pair
from grid.wire.messages import (
    Announce,
    ColumnCard,
    DatasetCard,
    Greeting,
    Join,
    Message,
    PolicyCard,
    Revocations,
    Welcome,
)


def make_dataset(name: str = "patients", tags: Sequence[str] = ("#demo",), **changes: Any) -> DatasetCard:
    """A dataset as a node would announce it."""
    card = DatasetCard(
        name=name,
        description="",
        tags=tuple(tags),
        rows=100,
        columns=(ColumnCard(name="age", kind="number", role="feature", minimum=0.0, maximum=110.0),),
        policy=PolicyCard(release="aggregate", plans="builtin", min_rows=10, max_elements=33),
        feature_names=("age",),
        feature_shape=(1,),
        feature_dtype="f4",
    )
    return dataclasses.replace(card, **changes)


@dataclasses.dataclass
class FakePeer:
    """A peer that has joined. `offers` gets (transport, sender) of links that others open to it."""

    me: LocalIdentity
    peer: Peer
    links: Links
    transport: Transport
    offers: asyncio.Queue[tuple[Transport, PeerId]]
    revocations: asyncio.Queue[bytes]
    left: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)

    @property
    def id(self) -> PeerId:
        return self.me.id

    async def request(self, message: Message) -> Any:
        return await self.peer.request(message)

    async def announce(self, *datasets: DatasetCard, address: str = "") -> None:
        await self.peer.request(Announce(datasets=datasets, address=address))

    async def open(self, other: FakePeer) -> tuple[Transport, Transport]:
        """A link to `other`: our end and its end."""
        mine = await self.links.open(other.id)
        theirs, sender = await other.offers.get()
        assert sender == self.id
        return mine, theirs


async def say_join(peer: Peer, me: LocalIdentity, trust: Trust) -> Welcome:
    """What a node or client does first."""
    greeting = peer.hello.greeting
    assert isinstance(greeting, Greeting)
    nonce = secrets.token_bytes(32)
    signature = me.sign(join_statement(greeting, nonce, me.card))
    welcome = await peer.request(Join(card=me.card, nonce=nonce, signature=signature))
    assert isinstance(welcome, Welcome)
    verify_welcome(trust, greeting, nonce, me.id, welcome)
    return welcome


class Crowd:
    """A running gateway, and a way to bring peers to it. Everything ends with `stack`."""

    def __init__(self, gateway: Gateway, tasks: asyncio.TaskGroup, stack: contextlib.AsyncExitStack) -> None:
        self.gateway = gateway
        self.tasks = tasks
        self.stack = stack
        self.clock = SystemClock()

    def connect(self, **options: Any) -> Transport:
        """Our end of a new connection to the gateway."""
        ours, theirs = memory_pair(**options)
        self.tasks.create_task(self.gateway.serve(theirs))
        return ours

    async def peer(
        self,
        name: str,
        role: str = "node",
        *,
        me: LocalIdentity | None = None,
        trust: Trust | None = None,
        wrap: Callable[[Transport], Transport] = lambda transport: transport,
    ) -> FakePeer:
        """A peer that has joined under this name."""
        me = me or LocalIdentity.create(name=name, role=role, clock=self.clock)
        trust = trust or Trust.dev()
        offers: asyncio.Queue[tuple[Transport, PeerId]] = asyncio.Queue()
        revocations: asyncio.Queue[bytes] = asyncio.Queue()
        links = Links(on_offer=lambda transport, sender: offers.put_nowait((transport, sender)))
        handlers = Handlers({**links.handlers(), Revocations: lambda context, message: revocations.put_nowait(message.envelope)})
        transport = wrap(self.connect())
        limits = self.gateway.settings.session
        peer = Peer(transport, initiator=True, handlers=handlers, context=None, limits=limits, clock=self.clock, name=name)
        fake = FakePeer(me, peer, links, transport, offers, revocations)
        await self.stack.enter_async_context(peer)
        await self.stack.enter_async_context(links.over(peer))
        await say_join(peer, me, trust)
        return fake

    async def changed(self, condition: Callable[[], bool]) -> None:
        """Until the condition holds; looks again at each change that the gateway reports."""
        async with asyncio.timeout(10):
            while True:
                change = self.gateway.changes.next
                if condition():
                    return
                await change.wait()


@contextlib.asynccontextmanager
async def crowd(
    settings: GatewaySettings | None = None, *, trust: Trust | None = None, token: str = "a token of sorts"
) -> AsyncIterator[Crowd]:
    """A gateway without a port."""
    clock = SystemClock()
    me = LocalIdentity.create(name="gateway", role="gateway", clock=clock)
    gateway = Gateway(
        settings or GatewaySettings(dev=trust is None), me=me, trust=trust or Trust.dev(), clock=clock, token=token
    )
    async with asyncio.TaskGroup() as tasks, gateway, contextlib.AsyncExitStack() as stack:
        yield Crowd(gateway, tasks, stack)
