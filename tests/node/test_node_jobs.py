"""A node's side of federated jobs: what it takes on, what each leg answers, and what it never sends."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from torch import nn

from grid.client.training import Wish, order
from grid.clock import SystemClock
from grid.crypto.cards import read_card
from grid.crypto.identity import LocalIdentity
from grid.errors import (
    AuthenticationFailed,
    ExecutionFailed,
    GridError,
    InvalidRequest,
    NotFound,
    PlanRejected,
    QuotaExceeded,
    ReleaseDenied,
)
from grid.federated.coordination import ROOM
from grid.federated.local import Local
from grid.federated.secagg.party import Party
from grid.federated.secagg.server import Server
from grid.federated.secagg.statements import read_keys
from grid.federated.trainer import Trainer
from grid.node import jobs as node_jobs
from grid.node.job_rounds import Claims
from grid.plans import ir
from grid.settings import NodeSettings
from grid.store.memory import MemoryStore
from grid.testing import LocalGrid
from grid.wire.jobs import EndJob, RoundRoster, RoundShares, RoundSurvivors, RoundUnmask, Sealed, SingleUpdate
from grid.wire.messages import Message
from tests.node.job_host import NAMES, Host, Round, made_order, model, numbers, offer, rows_of

OPEN_TO_ALL: dict[str, Any] = {"release": "aggregate", "plans": "any"}
NODES = {name: {"rows": rows_of(seed)} for seed, name in enumerate(NAMES)}


@asynccontextmanager
async def grid_of(**changes: dict[str, Any]) -> AsyncIterator[tuple[LocalGrid, Host]]:
    """Three nodes with rows; `changes` are keys of one node's policy by its name."""
    nodes = {name: {"rows": rows_of(seed, **(OPEN_TO_ALL | changes.get(name, {})))} for seed, name in enumerate(NAMES)}
    async with LocalGrid(nodes=nodes) as local:
        host = Host(local)
        await host.call(*NAMES)
        yield local, host


async def offered(host: Host, local: LocalGrid, /, **options: Any) -> Any:
    made = await made_order(local, **options)
    for name in NAMES:
        await host.ask(name, offer(made))
    return made


def by_hand(made: Any, name: str, number: int = 1, local: Local | None = None) -> Any:
    """What the node's trainer gives for the same rows and seed, worked out here."""
    rows = NODES[name]["rows"]
    trainer = Trainer(
        train=ir.decode(made.message.train),
        evaluate=ir.decode(made.message.evaluate),
        local=local or Local(),
        features=rows["features"],
        targets=rows["targets"],
        least=10,  # min_rows
    )
    weights = np.frombuffer(made.message.weights.data, "<f4")
    node = made.spec.nodes[list(NAMES).index(name)]
    return trainer.train(weights, round=number, seed=made.spec.seed_of(node))


async def test_a_round_gives_the_mean_of_what_the_nodes_learned() -> None:
    async with grid_of() as (local, host):
        made = await offered(host, local, seed=7)
        found = await Round(host, made).all()
        learned = [by_hand(made, name) for name in NAMES]
    assert found.weight == sum(one.examples for one in learned)
    expected = sum(one.update.astype(np.float64) * one.examples for one in learned) / found.weight
    assert np.abs(found.mean_update - expected).max() < 1e-6
    sums = sum(one.metrics for one in learned)
    assert np.allclose(found.metric_sums, [*sums, found.weight], atol=1e-4)


async def test_which_rows_make_a_batch_is_a_secret_of_the_node_that_a_seed_repeats() -> None:
    """Known batches of many jobs are equations for single rows."""
    batches, updates = Local(batch_size=20), []
    async with grid_of() as (local, host):
        for _ in range(2):
            made = await offered(host, local, seed=7, local=batches)
            updates.append((await Round(host, made).all()).mean_update)
        learned = [by_hand(made, name, local=batches) for name in NAMES]
        for size in (21, 22):
            made = await offered(host, local, seed=7, local=dataclasses.replace(batches, batch_size=size, max_steps=1))
            updates.append((await Round(host, made).all()).mean_update)
    # Batches that are larger by one row have other rows altogether: else the difference would be that row.
    assert np.abs(updates[2] - updates[3]).max() > 1e-3
    guessed = sum(one.update.astype(np.float64) * one.examples for one in learned) / sum(one.examples for one in learned)
    assert np.array_equal(*updates[:2]) and np.abs(updates[0] - guessed).max() > 1e-4


async def test_what_a_node_draws_goes_by_the_index_of_the_round_and_not_by_its_number() -> None:
    async with grid_of(**{name: {"batches": "known"} for name in NAMES}) as (local, host):
        batches = Local(batch_size=20)
        made = await offered(host, local, seed=7, local=batches, rounds=2)
        found = await Round(host, made, number=5, index=2).all()
        learned = [by_hand(made, name, number=2, local=batches) for name in NAMES]
    expected = sum(one.update.astype(np.float64) * one.examples for one in learned) / found.weight
    assert np.abs(found.mean_update - expected).max() < 1e-6


async def test_no_range_is_believed_because_it_fits_an_evaluation() -> None:
    """Nothing lies beyond a range where there is no update. Beyond a narrow one every larger node's update would be its end."""
    async with grid_of() as (local, host):
        made = await offered(host, local)

        def narrow(made_round: Round) -> Round:
            old = made_round.terms.quantiser
            terms = dataclasses.replace(made_round.terms, quantiser=dataclasses.replace(old, clip=1e-6))
            made_round.terms, made_round.server = terms, Server(terms)
            return made_round

        evaluation = narrow(Round(host, made, evaluate_only=True))
        await evaluation.begin()
        await evaluation.share()
        await evaluation.collect()
        with pytest.raises(ReleaseDenied, match=r"secagg\.range"):
            await narrow(Round(host, made, number=2, index=1)).all()
        with pytest.raises(ReleaseDenied, match="another one was tried"):  # also where the job is taken for over and offered anew
            host.peers["alice"].notify(EndJob(job=made.spec.job))
            await host.ask("alice", offer(made))
            await narrow(Round(host, made, number=3, index=1)).all()


async def test_an_evaluation_gives_sums_of_metrics_alone() -> None:
    async with grid_of() as (local, host):
        made = await offered(host, local, seed=7)
        found = await Round(host, made, evaluate_only=True).all()
        expected = sum(by_hand(made, name).metrics for name in NAMES)
    assert found.mean_update.size == 0
    assert np.allclose(found.metric_sums[:-1], expected, atol=1e-4) and found.metric_sums[-1] == 120


async def test_what_is_asked_again_is_answered_as_before() -> None:
    async with grid_of() as (local, host):
        made = await offered(host, local)
        await host.ask("alice", offer(made))
        now = Round(host, made)
        await now.begin()
        assert (await host.ask("alice", now.beginning())).envelope in now.server.roster()
        await now.share()
        again = await host.ask("alice", now.roster())
        assert {one.peer for one in again.shares} == {now.ids["bob"], now.ids["carol"]}
        first = await now.collect()
        assert numbers((await host.ask("alice", now.shares("alice"))).vector).tolist() == numbers(first["alice"].vector).tolist()
        await now.open()
        assert await host.ask("alice", now.unmasking()) == await host.ask("alice", now.unmasking())


async def test_another_attempt_trains_no_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []
    before = Trainer.train

    def counting(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        trained.append(kwargs["round"])
        return before(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "train", counting)
    async with grid_of() as (local, host):
        made = await offered(host, local, min_nodes=2)
        first = Round(host, made)
        await first.begin()
        await first.share()
        second = Round(host, made, attempt=2, names=("alice", "bob"))
        await second.begin(with_weights=False)
        with pytest.raises(NotFound, match="another attempt has begun"):
            await host.ask("alice", first.shares("alice"))
        await second.share()
        await second.collect()
        assert (await second.open()).weight == 80
    assert trained == [1, 1, 1]


async def test_a_round_in_place_of_one_that_was_lost_trains_no_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []
    before = Trainer.train

    def counting(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        trained.append(kwargs["round"])
        return before(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "train", counting)
    async with grid_of() as (local, host):
        made = await offered(host, local)
        lost = Round(host, made)
        await lost.begin()
        await lost.share()
        await lost.collect()
        again = Round(host, made, number=2, index=1)
        assert (await again.all()).weight == 120
        with pytest.raises(NotFound, match="another attempt has begun"):
            await host.ask("alice", lost.roster())
    assert trained == [1, 1, 1]


async def test_a_second_sum_over_the_same_model_is_refused() -> None:
    async with grid_of() as (local, host):
        made = await offered(host, local)
        await Round(host, made).all()
        with pytest.raises(ReleaseDenied, match=r"secagg\.model"):
            await host.ask("alice", Round(host, made, number=2, names=("alice", "bob")).beginning())


async def test_a_restarted_node_refuses_that_too_and_takes_part_in_the_next_round() -> None:
    async with grid_of() as (local, host):
        made = await offered(host, local)
        first = Round(host, made)
        mean = (await first.all()).mean_update
        await restart(local, host, "alice")
        with pytest.raises(NotFound, match="was restarted"):
            await host.ask("alice", first.roster())
        await host.ask("alice", offer(made))
        with pytest.raises(ReleaseDenied, match=r"secagg\.model"):
            await host.ask("alice", Round(host, made, number=2).beginning())
        weights = np.frombuffer(made.message.weights.data, "<f4") + mean.astype("<f4")
        assert (await Round(host, made, number=2, weights=weights).all()).weight == 120


async def test_a_node_that_is_lost_after_it_has_signed_still_opens_that_sum_and_no_other() -> None:
    async with grid_of() as (local, host):
        made = await offered(host, local, seed=7)
        first = Round(host, made)
        await first.begin()
        await first.share()
        await first.collect()
        for name in NAMES:
            consent = await host.ask(name, first.survivors())
            first.server.add_consent(first.ids[name], consent.signature)
        for name in ("bob", "carol"):
            answer = await host.ask(name, first.unmasking())
            first.server.add_reveal(first.ids[name], {one.peer: one.data for one in answer.shares})
        await restart(local, host, "alice")
        await host.ask("alice", offer(made))
        with pytest.raises(NotFound, match="was restarted"):
            await host.ask("alice", dataclasses.replace(first.unmasking(), attempt=2))
        again = await host.ask("alice", first.survivors())
        assert again.signature in first.server.consents().values()
        with pytest.raises(ReleaseDenied, match=r"secagg\.leg"):
            await host.ask("alice", dataclasses.replace(first.survivors(), survivors=first.server.survivors()[:2]))
        with pytest.raises(ReleaseDenied, match=r"secagg\.consent"):
            await host.ask("alice", dataclasses.replace(first.unmasking(), consents=()))
        answer = await host.ask("alice", first.unmasking())
        first.server.add_reveal(first.ids["alice"], {one.peer: one.data for one in answer.shares})
        assert first.terms.quantiser.decode(first.server.result()).weight == 120
        with pytest.raises(ReleaseDenied, match=r"secagg\.model"):
            await host.ask("alice", Round(host, made, number=2).beginning())
        store = local.node("alice")._jobs._store  # type: ignore[union-attr]
        assert store.jobs() == [made.spec.job]
        host.peers["alice"].notify(EndJob(job=made.spec.job))
        await host.ask("alice", offer(made))  # answered after the end
        assert made.spec.job not in store.jobs()


async def test_a_job_that_ends_while_it_is_offered_is_over_once_it_is_here() -> None:
    async with grid_of() as (local, host):
        made = await made_order(local)
        await host.call("alice")
        taken = host.peers["alice"].start_request(offer(made), timeout_s=30)
        host.peers["alice"].notify(EndJob(job=made.spec.job))
        await taken
        with pytest.raises(NotFound, match="not at this node"):
            await host.ask("alice", RoundRoster(job=made.spec.job, round=1, attempt=1, keys=()))


async def test_a_job_that_ends_as_the_channel_does_is_closed_all_the_same() -> None:
    async with grid_of() as (local, host):
        made = await offered(host, local)
        trainers = local.node("alice")._jobs._trainers  # type: ignore[union-attr]
        assert list(trainers._open) == [made.spec.job]
        host.peers["alice"].notify(EndJob(job=made.spec.job))
        host.peers["alice"].close_soon()
        await host.until(lambda: "alice" not in host.peers)
        await host.call("alice")
        await host.ask("alice", offer(made))  # what trained is closed, and the job may begin anew
        assert list(trainers._open) == [made.spec.job]


async def restart(local: LocalGrid, host: Host, name: str) -> None:
    await local.stop_node(name)
    await host.until(lambda: name not in host.peers)
    await local.start_node(name)
    await host.call(name)


async def test_failures_that_depend_on_rows_are_counted_over_a_clients_jobs() -> None:
    async with grid_of() as (local, host):
        client = await local.client()
        found = await client.search("#rows")
        wish = Wish(model=nn.Linear(4, 1), loss=no_class_1, datasets=found)
        for _ in range(5):
            made = order(wish, me=client.me, clock=SystemClock(), dev=True)
            for name in NAMES:
                await host.ask(name, offer(made))
            failing = Round(host, made)
            await failing.begin()
            await failing.share()
            with pytest.raises(ExecutionFailed):
                await host.ask("alice", failing.shares("alice"))
            for name in NAMES:
                host.peers[name].notify(EndJob(job=made.spec.job))
        made = order(wish, me=client.me, clock=SystemClock(), dev=True)
        with pytest.raises(ReleaseDenied) as denied:
            await host.ask("alice", offer(made))
        assert denied.value.details["rule"] == "private_errors"
        other = await local.client()
        await host.ask("alice", offer(order(wish, me=other.me, clock=SystemClock(), dev=True)))


def no_class_1(outputs: Any, targets: Any) -> Any:
    return outputs.gather(1, targets[:, None]).square().mean()


async def test_a_range_that_does_not_fit_is_tried_once() -> None:
    async with grid_of() as (local, host):
        made = await offered(host, local, seed=7)
        rounds = [Round(host, made, attempt=attempt) for attempt in (1, 2, 3)]
        wide = rounds[2].terms
        for one, clip in zip(rounds, (1e-6, 1e6), strict=False):
            narrow = dataclasses.replace(wide.quantiser, bits=32, clip=clip, levels=1)
            one.terms = dataclasses.replace(one.terms, bits=32, quantiser=narrow)
            one.server = Server(one.terms)
            await one.begin()
            await one.share()
            with pytest.raises(ReleaseDenied, match=r"secagg\.range"):
                await host.ask("alice", one.shares("alice"))
        assert (await rounds[2].all()).weight == 120


async def test_a_roster_is_of_the_nodes_that_the_client_signed() -> None:
    async with grid_of() as (local, host):
        client = await local.client()
        found = [one for one in await client.search("#rows") if one.node.name != "carol"]
        wish = Wish(model=model(), loss=nn.functional.cross_entropy, datasets=found)
        made = order(wish, me=client.me, clock=SystemClock(), dev=True)
        for name in ("alice", "bob"):
            await host.ask(name, offer(made))
        pair = Round(host, made, names=("alice", "bob"))
        await pair.begin()
        stranger = LocalIdentity.create(name="eve", role="node", clock=SystemClock())
        party = Party(
            me=stranger,
            card=stranger.card_for(SystemClock()),
            terms=pair.terms,
            minimum=2,
            verify=read_card,
            memory=Claims(MemoryStore(), SystemClock(), made.spec.expires),
        )
        mine = [one for one in pair.roster().keys if read_keys(one, pair.terms, read_card).card.name == "alice"]
        with pytest.raises(ReleaseDenied, match=r"secagg\.member"):
            await host.ask("alice", dataclasses.replace(pair.roster(), keys=(*mine, party.keys())))


async def test_a_gateway_gets_no_more_sums_than_the_client_signed_rounds() -> None:
    async with grid_of() as (local, host):
        made = await offered(host, local, rounds=1)
        first = Round(host, made)
        await first.all()
        weights = np.frombuffer(made.message.weights.data, "<f4")
        await Round(host, made, number=2, weights=weights + 1, evaluate_only=True).all()
        more = [
            Round(host, made, number=3, index=2, weights=weights + 2),
            Round(host, made, number=3, index=1, weights=weights + 2),
            Round(host, made, number=3, weights=weights + 2, evaluate_only=True),
        ]
        for _ in range(2):
            for one in more:
                with pytest.raises(ReleaseDenied, match="rule rounds"):
                    await host.ask("alice", one.beginning())
            await restart(local, host, "alice")
            await host.ask("alice", offer(made))


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("policy", "rule", "advice"),
    [
        ({"release": "deny"}, "release", 'release = "aggregate"'),
        ({"release": "approve"}, "allow", "allow = ["),
        ({"min_rows": 41}, "min_rows", "smaller min_rows"),
        ({"min_cohort": 4}, "min_cohort", "min_nodes=4"),
    ],
)
async def test_the_owners_rules_are_named(policy: dict[str, Any], rule: str, advice: str) -> None:
    async with grid_of() as (local, host):
        made = await made_order(local)
        rows = local.node("alice").datasets["rows"]
        changed = dataclasses.replace(rows, policy=dataclasses.replace(rows.policy, **policy))
        local.node("alice")._custody.datasets = {"rows": changed}
        with pytest.raises(ReleaseDenied, match="the dataset 'rows' at alice") as refused:
            await host.ask("alice", offer(made))
    assert refused.value.details["rule"] == rule and advice in refused.value.message


async def test_a_batch_of_fewer_rows_than_min_rows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grid.client.training._check_rules", lambda *_: None)
    async with grid_of(alice={"min_rows": 20}) as (local, host):
        with pytest.raises(ReleaseDenied, match="a batch of this job has 19 rows, fewer than the min_rows = 20"):
            await host.ask("alice", offer(await made_order(local, local=Local(batch_size=19))))
        await host.ask("alice", offer(await made_order(local, local=Local(batch_size=20, max_steps=1))))


async def test_a_rule_that_changes_counts_from_the_next_round() -> None:
    async with grid_of() as (local, host):
        made = await offered(host, local)
        rows = local.node("alice").datasets["rows"]
        denied = dataclasses.replace(rows, policy=dataclasses.replace(rows.policy, release="deny"))
        local.node("alice")._jobs._jobs[made.spec.job]._datasets = {"rows": denied}
        with pytest.raises(ReleaseDenied, match="deny"):
            await host.ask("alice", Round(host, made).beginning())


async def test_a_revoked_client_and_a_job_past_its_time_are_refused_at_every_leg(monkeypatch: pytest.MonkeyPatch) -> None:
    async with grid_of() as (local, host):
        made = await offered(host, local)
        now = Round(host, made)
        await now.begin()
        trust = local.node("alice").trust
        monkeypatch.setattr(trust, "revoked", lambda card: card.id == made.spec.client)
        with pytest.raises(AuthenticationFailed, match="was revoked"):
            await host.ask("alice", now.roster())
        with pytest.raises(AuthenticationFailed, match="was revoked"):
            await host.ask("alice", now.beginning())
        clock = local.node("bob").clock
        monkeypatch.setattr(type(clock), "wall", lambda self: made.spec.expires + 1)
        with pytest.raises(AuthenticationFailed, match="time is over"):
            await host.ask("bob", now.roster())


async def test_updates_leave_alone_where_the_owner_lets_them() -> None:
    single = {name: {"updates": "single"} for name in NAMES}
    async with grid_of(**single) as (local, host):
        made = await offered(host, local, secure=False, seed=7)
        beginning = Round(host, made).beginning(terms=b"")
        answer: SingleUpdate = await host.ask("bob", beginning)
        assert answer.update is not None
        expected = by_hand(made, "bob")
        assert np.allclose(np.frombuffer(answer.update.data, "<f4"), expected.update, atol=1e-6)
        assert answer.examples == 40 and answer.metrics[-1] == 40
        assert bytes((await host.ask("bob", beginning)).update.data) == bytes(answer.update.data)
        with pytest.raises(InvalidRequest, match="without masks"):
            await host.ask("bob", Round(host, made).beginning())


async def test_a_job_with_masks_gives_no_update_without() -> None:
    async with grid_of(alice={"updates": "single"}) as (local, host):
        made = await offered(host, local)
        with pytest.raises(InvalidRequest, match="under masks"):
            await host.ask("alice", Round(host, made).beginning(terms=b""))


async def test_single_updates_need_the_owners_word() -> None:
    async with grid_of() as (local, host):
        made = await made_order(local)
        client = await local.client()
        spec = dataclasses.replace(made.spec, secure=False, client=client.me.id)
        card = client.me.card_for(local.gateway.clock)
        message = dataclasses.replace(offer(made), envelope=spec.sign(client.me), card=card)
        with pytest.raises(ReleaseDenied, match='updates = "summed"'):
            await host.ask("alice", message)


async def test_only_what_the_client_signed_is_taken_on() -> None:
    async with grid_of() as (local, host):
        made, other = await made_order(local), await made_order(local)
        good = offer(made)
        cases: list[tuple[dict[str, Any], type[GridError]]] = [
            ({"card": other.message.card}, AuthenticationFailed),
            ({"card": local.node("bob").me.card_for(local.gateway.clock)}, AuthenticationFailed),
            ({"envelope": good.envelope[:-1] + bytes([good.envelope[-1] ^ 1])}, AuthenticationFailed),
            ({"job": other.spec.job}, AuthenticationFailed),
            ({"train": good.evaluate}, PlanRejected),
            ({"evaluate": bytes(good.evaluate)[:-1]}, PlanRejected),
        ]
        for changes, error in cases:
            with pytest.raises(error):
                await host.ask("alice", dataclasses.replace(good, **changes))
        await host.ask("alice", good)
        with pytest.raises(InvalidRequest, match="another job of this id"):
            await host.ask("alice", dataclasses.replace(good, envelope=good.envelope + b"x"))


async def test_terms_of_another_job_round_or_model_are_refused() -> None:
    async with grid_of() as (local, host):
        made = await offered(host, local)
        good = Round(host, made)
        elsewhere = Round(host, made, weights=np.zeros(10, np.float32))
        for changes in (
            {"round": 2},
            {"attempt": 2},
            {"index": 2},
            {"index": 0},
            {"weights": elsewhere.frame},
            {"terms": elsewhere.terms.encode()},
            {"terms": Round(host, made, evaluate_only=True).terms.encode()},
            {"weights": dataclasses.replace(good.frame, shape=(5, 2))},
        ):
            with pytest.raises(InvalidRequest):
                await host.ask("alice", good.beginning(**changes))
        with pytest.raises(NotFound, match="with the weights"):
            await host.ask("alice", good.beginning(with_weights=False))
        bad = np.full(10, np.nan, np.float32)
        with pytest.raises(InvalidRequest, match="not finite"):
            await host.ask("alice", Round(host, made, weights=bad).beginning())


async def test_hostile_legs_are_refused_and_the_round_goes_on() -> None:
    """Whatever the gateway sends in a leg, an error of ours comes back, and the leg can still be asked as it should be."""
    async with grid_of() as (local, host):
        made = await offered(host, local)
        now = Round(host, made)
        good = now.beginning()
        stranger = Sealed(peer=made.spec.client, data=bytes(80))

        async def refused(*messages: Message) -> None:
            for message in messages:
                with pytest.raises(GridError) as found:
                    await host.ask("alice", message)
                assert type(found.value) is not GridError, "an error of ours, on purpose"

        at: dict[str, Any] = {"job": made.spec.job, "round": 1, "attempt": 1}
        await refused(RoundRoster(**at, keys=()), RoundShares(**at, shares=()), RoundUnmask(**at, consents=()))
        await refused(*(dataclasses.replace(good, terms=terms) for terms in (b"", b"x", bytes(5000), good.terms[:-1])))
        await now.begin()
        keys = now.server.roster()
        await refused(
            RoundRoster(**at, keys=()),
            RoundRoster(**at, keys=(keys[0],)),
            RoundRoster(**at, keys=(*keys, b"junk")),
            RoundRoster(**at, keys=(keys[0], keys[0], keys[1])),
            RoundRoster(**at, keys=tuple(bytes(300) for _ in range(2000))),
            RoundSurvivors(**at, survivors=()),
            RoundUnmask(**at, consents=(stranger,)),
        )
        await now.share()
        shares = now.shares("alice").shares
        await refused(
            RoundShares(**at, shares=()),
            RoundShares(**at, shares=(*shares, stranger)),
            RoundShares(**at, shares=(shares[0], shares[0])),
            RoundShares(**at, shares=tuple(dataclasses.replace(one, data=bytes(80)) for one in shares)),
            RoundShares(**(at | {"attempt": 1 << 40}), shares=shares),
        )
        await now.collect()
        await refused(
            RoundSurvivors(**at, survivors=()),
            RoundSurvivors(**at, survivors=now.server.survivors()[:1]),
            RoundSurvivors(**at, survivors=(*now.server.survivors(), stranger.peer)),
            RoundSurvivors(**at, survivors=now.server.survivors() * 2),
            RoundUnmask(**at, consents=()),
        )
        assert (await now.open()).weight == 120


async def test_one_client_has_half_of_the_places() -> None:
    nodes = {name: {"rows": rows_of(seed)} for seed, name in enumerate(NAMES)}
    async with LocalGrid(nodes=nodes, node=NodeSettings(max_trainings=2)) as local:
        host = Host(local)
        await host.call("alice")
        client = await local.client()
        made = await made_order(local)
        await host.ask("alice", offer(made))
        same = dataclasses.replace(made.spec, job="1" * 32, client=client.me.id)
        first = dataclasses.replace(
            offer(made), job="1" * 32, envelope=same.sign(client.me), card=client.me.card_for(local.gateway.clock)
        )
        await host.ask("alice", first)
        again = dataclasses.replace(same, job="2" * 32)
        with pytest.raises(QuotaExceeded, match="this client has 1 jobs here") as full:
            await host.ask("alice", dataclasses.replace(first, job="2" * 32, envelope=again.sign(client.me)))
        assert full.value.details["limit"] == ROOM


# ---------------------------------------------------------------- the channel


async def test_a_channel_without_a_job_closes_and_one_that_is_lost_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_jobs, "LINGER_S", 1.0)
    async with grid_of() as (local, host):
        made = await made_order(local)
        await host.call("alice")
        await host.ask("alice", offer(made))
        monkeypatch.setattr(node_jobs, "LINGER_S", 0.05)
        lost = host.peers["alice"]
        lost.close_soon()
        await host.until(lambda: host.peers.get("alice", lost) is not lost)
        await host.ask("alice", offer(made))
        assert (await host.ask("alice", Round(host, made).beginning())).envelope
        host.peers["alice"].notify(EndJob(job=made.spec.job))
        await host.until(lambda: not host.peers)
        monkeypatch.setattr(node_jobs, "LINGER_S", 1.0)
        await host.call("alice")
        with pytest.raises(NotFound, match="not at this node"):
            await host.ask("alice", RoundRoster(job=made.spec.job, round=1, attempt=1, keys=()))


async def test_a_job_of_which_nothing_is_heard_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_jobs, "LINGER_S", 1.0)
    async with grid_of() as (local, host):
        made = await made_order(local)
        await host.call("alice")
        await host.ask("alice", offer(made))
        monkeypatch.setattr(node_jobs, "LINGER_S", 0.05)
        monkeypatch.setattr(node_jobs, "SILENCE_S", -made.spec.deadline_s)
        await host.until(lambda: "alice" not in host.peers)
        assert local.node("alice")._jobs._jobs == {}
