"""A committee as a client sees it: three nodes that compute on shares, and what this client has asked of them.

All three get the same numbered requests in the same order (`share_requests`). A committee lives as long as these sessions: when
one is lost, everything on shares is, and `QuorumLost` names the node.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from grid.client.connection import NodeConnection, Site
from grid.client.dispatch import Handle, Place
from grid.client.fixed_precision import FixedTensor, plain, words_of
from grid.client.flow import Home
from grid.client.links import Linked
from grid.client.modules import SharedModule, send_module
from grid.client.offers import Offer
from grid.client.origins import Origin, describe, origin
from grid.client.shapes import Shapes
from grid.client.share_requests import GRACE_S, PlanCall, Reply, Request, ShareRequests, check_size, settled, telling
from grid.client.shared import SharedTensor, wrap
from grid.client.shared_plans import Runs, is_at_a_node
from grid.client.tensors import RemoteTensor
from grid.crypto.keys import fresh_seed
from grid.crypto.prg import ring_elements
from grid.errors import (
    GridError,
    InvalidRequest,
    OpNotSupported,
    WireError,
)
from grid.ids import CommitteeId, ObjectId, PeerId, PlanId, TransferId
from grid.plans.ir import Plan, PlanCost
from grid.plans.trees import unflatten
from grid.smpc import rehearsal
from grid.smpc.interpreter import find, fraction_bits
from grid.smpc.programs import request_numbers
from grid.smpc.replicated.opening import digest
from grid.tensors import fixed
from grid.tensors.buffers import short_dtype, to_frame, torch_dtype
from grid.wire.messages import (
    Arg,
    CloseCommittee,
    Command,
    ExpectShare,
    GetShare,
    Inline,
    Message,
    MoveShares,
    OfferShares,
    Ok,
    OpenCommittee,
    PutSharedPlan,
    SharedCall,
    ShareInput,
    ShareObject,
    ShareValue,
    TensorFrame,
)

RESULT_BYTES = 16
"""Of each element of a result, at a node."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Where:
    """The committee as a place."""

    name: str
    id: str


class Committee:
    """Three nodes that compute on shares. Made by `g.committee(...)`; `grid.client.dispatch.Outbox` of its tensors."""

    def __init__(
        self,
        connections: Sequence[NodeConnection],
        *,
        committee: CommitteeId,
        clients: tuple[PeerId, ...],
        home: Home,
        shapes: Shapes,
        wait: Callable[[Any], Any],
        deadline_s: float,
        find: Callable[[str], NodeConnection],
        me: PeerId,
    ) -> None:
        self._find, self._me = find, me
        self.id = committee
        self.clients = clients
        self.shapes = shapes
        self.wait = wait
        self._connections = tuple(connections)
        self._names = tuple(one.place.name for one in connections)
        self._roster = tuple(PeerId(one.place.id) for one in connections)
        self._home = home
        self._deadline_s = deadline_s
        self._ids = itertools.count(1)
        self._requests = ShareRequests(committee, connections, home, deadline_s)
        self._closed = False
        self._runs = Runs()
        self._plans: set[PlanId] = set()
        self._offered: set[ObjectId] = set()
        self.new_id: Callable[[], ObjectId] = self._ids.__next__  # type: ignore[assignment]

    # ------------------------------------------------------------ for users

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of its nodes, in the order of their ranks."""
        return self._names

    @property
    def sites(self) -> tuple[Site, ...]:
        """Its nodes."""
        return tuple(one.place for one in self._connections)  # type: ignore[misc]

    def is_open(self) -> bool:
        """Whether it still can be asked for something, as far as is known here."""
        return not self._closed and not self._requests.is_lost and all(one.flow.error is None for one in self._connections)

    def share(self, value: Any) -> Any:
        """The value on shares. A local tensor is split here, and no node sees more than random numbers; one at a node is split
        there, if its owner's rules let it be shared. Of a module, a new one whose parameters and buffers are on shares (other
        tensors that it has stay here, and are public where they are used); its `reveal()` gives a plain module. Returns at once;
        a refusal comes with `reveal()`."""
        self._check_open()
        if isinstance(value, torch.nn.Module):
            return send_module(value, self._share_tensor, SharedModule)
        return self._share_tensor(value)

    def _share_tensor(self, value: Any) -> SharedTensor:
        if isinstance(value, Linked):
            return value.share(self)  # type: ignore[no-any-return]
        if isinstance(value, RemoteTensor) and not isinstance(value, FixedTensor):
            return self._share_remote(value)
        if not isinstance(value, torch.Tensor):
            kind = type(value).__name__
            raise InvalidRequest(f"a committee shares tensors and modules, not {kind}; torch.as_tensor makes tensors")
        check_size(8 * value.numel())
        whole = value.child.child if isinstance(value, FixedTensor) else words_of(value)
        words: Any = whole.numpy().view(np.uint64)
        dtype, shape = short_dtype(value.dtype), tuple(value.shape)
        seeds = (fresh_seed(), fresh_seed())
        flat = words.reshape(-1)
        rest: Any = flat - sum(ring_elements(seed, flat.size).view(np.uint64) for seed in seeds)
        last = rest.astype("<u8").tobytes()
        parts = ((seeds[0], seeds[1]), (seeds[1], last), (last, seeds[0]))
        made = self._made(value.shape, value.dtype)
        object_id = made._handle.object_id
        self._runs.examples.keep(object_id, plain(value))

        def messages(number: int) -> Sequence[Message]:
            return [
                ShareInput(
                    committee=self.id, number=number, object=object_id, dtype=dtype, shape=shape, first=first, second=second
                )
                for first, second in parts
            ]

        self._requests.add(Request(messages, "sharing a tensor", origin(3)))
        return made

    def run(self, what: Any, *args: Any, check: bool = False, trace: bool = False) -> Any:
        """Run a plan, an `@grid.plan` function or a module on shares, as one request: nothing waits on this client.

        Arguments are as the plan takes them: tensors on shares of this committee; tensors at nodes, which are shared first; and
        local tensors and numbers, which are public to the three nodes (a private one: `committee.share(x)`). Results have the
        structure that the function returned, on shares; what depends on public arguments alone is a local tensor. A module is
        traced once for each geometry of its inputs, with its parameters and buffers as they are now; those of a plain one are
        public.

        With `check`, the plan is first tried here in the clear, on values like the arguments: your own (copies of values of up
        to 1 MiB are kept for that, the latest 64 MiB of a committee; larger ones are looked at where you still have them), or
        the dataset's mock, or what a checked run before gave for them. For others, as results of other operations, standard
        normal values take their place, and the error or a warning in the log says so. Each operation gets what PyTorch gives for
        those before it. Raises `InvalidRequest` before anything is sent, that names each one which could overflow on shares, or
        leave what it is right for, or whose result is another than PyTorch's in double precision, by 1% and 0.005. It cannot
        tell of other values than these, of errors below that which add up over many operations, or of other committees' and
        nodes' own values.

        With `trace`, nothing is sent and no node does anything: the plan runs here, by three parties in this process, on the same
        values as for `check`, and a `Trace` comes back, which has rounds, bytes, seconds and the largest error of each operation,
        and the plan's `result` on those values. Print it, or `save` it as a picture.
        """
        plan, leaves = self._runs.plan_of(what, args)
        examples = self._runs.check(plan, leaves) if check else ()
        if trace:
            return self._runs.trace(plan, leaves)
        results = self.run_plan(plan, leaves)
        for one, example in zip(results, examples, strict=False):
            if example is not None and isinstance(one, SharedTensor):
                self._runs.examples.keep(one._handle.object_id, example)
        return unflatten(plan.gives, iter(results))

    def cost(self, what: Any, *args: Any) -> PlanCost:
        """What `run` with these arguments costs, as `Plan.cost`: `rounds`, and `bytes_sent` by each node on average. Nothing is
        sent. Local tensors count as public; pass shared ones, of any values, for what is to be secret."""
        plan, leaves = self._runs.plan_of(what, args)
        return rehearsal.cost(self._runs.prepared(plan, leaves))

    def _share_remote(self, value: RemoteTensor) -> SharedTensor:
        connection = value._handle.outbox
        if not isinstance(connection, NodeConnection) or connection.shapes is not self.shapes:
            raise InvalidRequest("a committee shares tensors of its own client, which are at a node and not on shares yet")
        fraction_bits(value.dtype)
        made = self._made(value.shape, value.dtype)
        object_id, dtype, shape = made._handle.object_id, short_dtype(value.dtype), tuple(value.shape)
        if value._mock is not None:
            self._runs.examples.describe(object_id, value._mock)
        owner = PeerId(connection.place.id)
        deal = ShareObject(committee=self.id, roster=self._roster, source=value._handle.object_id, object=object_id)

        def messages(number: int) -> Sequence[Message]:
            expect = ExpectShare(
                committee=self.id, number=number, owner=owner, object=object_id, dtype=dtype, shape=shape
            )
            return [expect] * len(self._connections)

        what = f"sharing a tensor at {connection.place.name}"
        self._requests.add(Request(messages, what, origin(3), source=(connection, deal, value._handle)))
        return made

    def offer(self, value: SharedTensor, *, to: str, plans: Sequence[Plan] = (), freely: bool = False) -> Any:
        """Let another client of the committee, by its id, compute with a value of this one's; the text that it gives to `take`.

        It cannot read the value. What depends on it opens to that client where it is a direct result of one of `plans` on values
        as they were shared; with `freely`, whatever it is, the value itself included. In an asynchronous client, an awaitable.
        """
        self._check_open()
        if value._handle.outbox is not self:
            raise InvalidRequest("a committee offers values that are on its own shares")
        if to not in self.clients or PeerId(to) == self._me:
            raise InvalidRequest("`to` is the id of another client of this committee (g.committee(..., clients=...))")
        for plan in plans:
            if not isinstance(plan, Plan):
                raise InvalidRequest(f"plans takes plans as grid.trace(...) makes them, not {type(plan).__name__}")
        if bool(plans) == freely:
            raise InvalidRequest("say which plans may open what depends on the value, plans=[...], or freely=True")
        return self.wait(self._offer(value, self.clients.index(PeerId(to)), tuple(plan.id for plan in plans), freely))

    async def _offer(self, value: SharedTensor, to: int, plans: tuple[PlanId, ...], freely: bool) -> str:
        offer = Offer.fresh(self._me, short_dtype(value.dtype), tuple(value.shape))
        object_id = value._handle.object_id

        def messages(number: int) -> Sequence[Message]:
            message = OfferShares(
                committee=self.id,
                number=number,
                object=object_id,
                client=self._me,
                to=to,
                name=offer.name,
                plans=plans,
                freely=freely,
            )
            return [message] * len(self._connections)

        await self._requests.asked(messages, "offering a value", None, Ok)
        return str(offer)

    def take(self, offer: str) -> SharedTensor:
        """A value that another client of the committee has offered to this one. Returns at once. Each offer is taken once."""
        self._check_open()
        found = Offer.parse(offer)
        if found.name in self._offered:
            raise InvalidRequest("this offer was taken before, and each is taken once; use that value, or ask for another offer")
        dtype = torch_dtype(found.dtype)
        self._offered.add(found.name)
        made = wrap(self.shapes.meta(found.shape, dtype), Handle(self, found.name))

        def messages(number: int) -> Sequence[Message]:
            expect = ExpectShare(
                committee=self.id, number=number, owner=found.client, object=found.name, dtype=found.dtype, shape=found.shape
            )
            return [expect] * len(self._connections)

        self._requests.add(Request(messages, "taking what another client offers", origin(2)))
        return made

    def close(self) -> None:
        """Be done with the committee: the nodes forget this client's shares. Returns at once; may be called twice."""
        if not self._closed:
            self._closed = True
            self._requests.forget()
            with suppress(GridError):
                self._home.call(self._say_goodbye)

    def _say_goodbye(self) -> None:
        for connection in self._connections:
            connection.flow.tell(CloseCommittee(committee=self.id))

    def __enter__(self) -> Committee:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Committee {', '.join(self._names)}{', closed' if self._closed else ''}>"

    # ------------------------------------------------------------ as the outbox of shared tensors

    @property
    def place(self) -> Place:
        return _Where(name=f"the committee of {', '.join(self._names)}", id=self.id)

    def emit(self, command: Command, tensors: Sequence[TensorFrame], place: Origin, what: str) -> None:
        """Queue a command."""
        self._check_open()
        try:
            find(command.op)
            for frame in tensors:
                fraction_bits(torch_dtype(frame.dtype))
                check_size(len(frame.data))
        except OpNotSupported as error:
            raise OpNotSupported(f"{error.message} (at {describe(place)})", **error.details) from None
        self._requests.add((command, tensors, place))

    def free(self, object_id: ObjectId) -> None:
        """The shares are not needed any more. Called from finalizers: takes no lock, never raises."""
        self._runs.examples.drop(object_id)
        with suppress(GridError):
            self._requests.add(object_id)

    async def read(self, tensor: Any, timeout_s: float | None) -> torch.Tensor:
        """Open a value to this client."""
        return fixed.decode(await self.words(tensor, timeout_s), fraction_bits(tensor.dtype), tensor.dtype)

    async def words(self, tensor: Any, timeout_s: float | None) -> torch.Tensor:
        """Open a value to this client: its ring elements, int64."""
        replies = await self._opened(tensor, timeout_s, ShareValue)
        return torch.from_numpy(self._put_together(replies, tensor.numel()).view(np.int64)).reshape(tensor.shape)

    async def open_to(self, tensor: Any, to: Any, timeout_s: float | None) -> RemoteTensor:
        """Open a value to a node alone: a remote tensor there."""
        if not isinstance(to, str | Site):
            raise InvalidRequest("reveal(to=) takes a node of this client, such as g.nodes['alice'], or its name")
        target = self._find(to) if isinstance(to, str) else to.connection()
        if target.shapes is not self.shapes:
            raise InvalidRequest(f"{target.place.name} belongs to another client; a value opens to a node of the same one")
        made, transfer = await target.expect_opening(tensor, self._roster, timeout_s)
        try:
            await self._opened(tensor, timeout_s, Ok, PeerId(target.place.id), transfer)
        except BaseException:
            del made  # An error keeps this frame; the receiver waits for the object until it is freed.
            raise
        return made

    async def _opened(
        self,
        tensor: Any,
        timeout_s: float | None,
        kind: type[Reply],
        recipient: PeerId | None = None,
        transfer: TransferId | None = None,
    ) -> list[Reply]:
        """Ask all three to open a value; their answers."""
        self._check_open()
        object_id = ObjectId(int(tensor._handle.ref))  # makes a transpose that nothing has used yet

        def messages(number: int) -> Sequence[Message]:
            message = GetShare(committee=self.id, number=number, object=object_id, recipient=recipient, transfer=transfer)
            return [message] * len(self._connections)

        return await self._requests.asked(messages, "revealing a value", timeout_s, kind)

    async def move(self, tensor: Any, to: Any, timeout_s: float | None) -> SharedTensor:
        """The value on shares at another committee."""
        if not isinstance(to, Committee) or to.shapes is not self.shapes:
            raise InvalidRequest("a value on shares moves to a committee of this client, g.committee(...), or to three nodes")
        if to is self:
            raise InvalidRequest(f"the value is at {self.place.name} already; clone() makes a copy there")
        to._check_open()
        self._check_open()
        made = to._made(tensor.shape, tensor.dtype)
        source, name = ObjectId(int(tensor._handle.ref)), made._handle.object_id
        dtype, shape = short_dtype(tensor.dtype), tuple(tensor.shape)

        def moves(number: int) -> Sequence[Message]:
            message = MoveShares(committee=self.id, number=number, object=source, to=to.id, roster=to._roster, name=name)
            return [message] * len(self._connections)

        def expects(number: int) -> Sequence[Message]:
            first, *others = self._roster
            expect = ExpectShare(
                committee=to.id, number=number, owner=first, object=name, dtype=dtype, shape=shape, others=tuple(others)
            )
            return [expect] * len(to._connections)

        try:
            await self._requests.asked(moves, "moving a value", timeout_s, Ok)
        except BaseException:
            del made  # an error keeps this frame
            raise
        to._requests.add(Request(expects, "a value that moves"))
        return made

    def run_plan(self, plan: Plan, leaves: Sequence[Any]) -> list[torch.Tensor]:
        """Call a plan on leaves, some of which may be local, and are public then, or at nodes, and are shared then. Sends it
        before its first call."""
        self._check_open()
        leaves = [plain(leaf) for leaf in leaves]
        place = origin(2)
        prepared = self._runs.prepared(plan, leaves)
        public = prepared.in_public(leaves)
        leaves = [self._share_remote(leaf) if is_at_a_node(leaf) else leaf for leaf in leaves]
        inputs: list[Arg] = []
        frames: list[TensorFrame] = []
        for leaf in leaves:
            if not isinstance(leaf, SharedTensor):
                inputs.append(Inline(len(frames)))
                frames.append(to_frame(leaf))
            elif leaf._handle.outbox is self:
                inputs.append(leaf._handle.ref)
            else:
                raise InvalidRequest(
                    f"one argument is on shares at {leaf.location.name}, and the plan runs at {self.place.name}: shares do not"
                    " move; share the value here, too"
                )
        check_size(sum(len(frame.data) for frame in frames))
        made = [self._made(one.shape, one.dtype) for one in prepared.results]
        call = SharedCall(
            plan=plan.id, count=request_numbers(plan), inputs=inputs, outputs=tuple(one._handle.object_id for one in made)
        )
        if plan.id not in self._plans:
            put = PutSharedPlan(committee=self.id, plan=plan.id, encoding=plan.encoding)
            self._requests.add(Request(lambda _: [put] * len(self._connections), f"sending the plan {plan.name}", place, count=0))
            self._plans.add(plan.id)
        self._requests.add(PlanCall(call, frames, sum(RESULT_BYTES * one.numel() for one in made), plan, place))
        return [one if known is None else known for one, known in zip(made, public, strict=True)]

    # ------------------------------------------------------------ the queue

    def _made(self, shape: Sequence[int], dtype: torch.dtype) -> SharedTensor:
        return wrap(self.shapes.meta(shape, dtype), Handle(self, self.new_id()))

    def _check_open(self) -> None:
        self._home.check_process()
        if self._closed:
            raise InvalidRequest("the committee was closed; open another one with g.committee(...)")

    def _put_together(self, replies: Sequence[ShareValue], count: int) -> Any:
        """The value from three components, each vouched for by its second holder."""
        components = []
        for name, reply in zip(self._names, replies, strict=True):
            if memoryview(reply.words).nbytes != 8 * count:
                raise WireError(f"{name} sent a component of another size than the value has")
            components.append(np.frombuffer(reply.words, "<u8").astype(np.uint64))
        for number, component in enumerate(components):
            if digest(component) != replies[number - 1].digest:
                raise WireError(
                    f"{self._names[number]} and {self._names[number - 1]} do not agree on their component of the result: one of"
                    " them does not follow the protocol"
                )
        return components[0] + components[1] + components[2]


async def open_committee(
    connections: Sequence[NodeConnection],
    *,
    committee: CommitteeId,
    clients: tuple[PeerId, ...],
    home: Home,
    shapes: Shapes,
    wait: Callable[[Any], Any],
    deadline_s: float,
    find: Callable[[str], NodeConnection],
    me: PeerId,
) -> Committee:
    """Have three nodes agree. Raises `QuorumLost` naming one that is gone, and what a node refuses by."""
    made = Committee(
        connections,
        committee=committee,
        clients=clients,
        home=home,
        shapes=shapes,
        wait=wait,
        deadline_s=deadline_s,
        find=find,
        me=me,
    )
    message = OpenCommittee(committee=committee, roster=made._roster, clients=clients, deadline_s=deadline_s)
    asks = [one.flow.ask(message, "opening a committee", deadline_s + GRACE_S) for one in connections]
    await settled(asks)
    errors = []
    for name, ask in zip(made._names, asks, strict=True):
        error = ask.exception() if ask.done() and not ask.cancelled() else None
        if isinstance(error, GridError):
            errors.append((name, made._requests.named(name, error)))
        elif error is not None:
            raise error
    if errors or not all(ask.done() for ask in asks):
        made.close()
        raise telling(errors)
    return made
