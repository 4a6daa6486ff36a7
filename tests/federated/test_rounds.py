"""Jobs and their rounds as state machines: every leg with losses, late answers, restarts, refusals."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from grid.errors import (
    AuthenticationFailed,
    DeadlineExceeded,
    ExecutionFailed,
    InvalidRequest,
    QuorumLost,
    QuotaExceeded,
    ReleaseDenied,
)
from grid.federated.effects import OFFER, Effect
from grid.federated.rounds import AnyRound
from grid.federated.secagg import party as secagg_party
from grid.federated.secagg import shamir
from grid.federated.secagg.party import Party
from grid.federated.secagg.quantiser import FIRST_CLIP, MISFIT
from grid.federated.spec import Stop
from grid.ids import PeerId
from grid.wire.jobs import BeginRound, RoundReveal, RoundShares, SingleUpdate
from grid.wire.messages import Message, Ok
from tests.federated.job_driver import Driver
from tests.federated.scripted_nodes import ScriptedNode, constant, frame_of, mean_step, some_nodes

LEGS = ["begin-round", "round-roster", "round-shares", "round-survivors", "round-unmask"]


def refuse(leg: str, error: Exception) -> Callable[[ScriptedNode, Message], None]:
    def before(node: ScriptedNode, message: Message) -> None:
        if message.tag == leg:
            raise error

    return before


def moves(nodes: Sequence[ScriptedNode]) -> float:
    return mean_step(nodes)


# ---------------------------------------------------------------- the way it goes


@pytest.mark.parametrize("secure", [True, False])
def test_a_job_ends_with_the_mean_of_all_updates(secure: bool) -> None:
    nodes = some_nodes(5)
    driver = Driver(nodes, rounds=3, secure=secure).until_over()
    assert driver.machine.card().state == "done"
    assert np.allclose(driver.weights, 3 * moves(nodes), rtol=1e-6)
    assert [report.round for report in driver.reports] == [1, 2, 3, 3]
    assert all(report.nodes == 5 and report.examples == 15 and not report.clipped for report in driver.reports)
    assert driver.reports[-1].text == "evaluation of the last model"
    assert set(driver.store.job_parts(driver.spec.job)) == {
        "progress",
        "start",
        *[f"report {number:06d}" for number in range(4)],
        "weights 000000",  # the best: moving away from zero only makes the loss worse
        "weights 000003",
    }
    assert all(node.ended for node in nodes)


def test_equal_weights_count_each_node_once() -> None:
    nodes = some_nodes(4)
    driver = Driver(nodes, rounds=1, weighting="equal").until_over()
    assert np.allclose(driver.weights, 1.5) and driver.reports[0].examples == 10


def test_without_rounds_the_model_is_only_evaluated() -> None:
    driver = Driver(some_nodes(3), np.full(5, 2.0, "f4"), rounds=0).until_over()
    (report,) = driver.reports
    assert report.metrics == pytest.approx((4.0,)) and np.array_equal(driver.weights, np.full(5, 2.0, "f4"))


def test_it_ends_early_when_the_metric_does_not_become_better_and_keeps_the_best() -> None:
    nodes = [ScriptedNode(f"n{index}", lambda weights, number: np.full_like(weights, 1.0), 4) for index in range(3)]
    driver = Driver(nodes, np.full(4, -2.0, "f4"), rounds=50, stop=Stop(patience=2)).until_over()
    losses = [report.metrics[0] for report in driver.reports]
    assert losses == pytest.approx([4.0, 1.0, 0.0, 1.0, 4.0, 9.0], abs=1e-6)
    assert [report.best for report in driver.reports] == [True, True, True, False, False, False]
    assert driver.machine.card().state == "done" and "did not become better" in driver.machine.card().text
    assert driver.machine.progress.best == 2 and "weights 000002" in driver.store.job_parts(driver.spec.job)


def test_evaluations_may_be_rare() -> None:
    driver = Driver(some_nodes(3), rounds=4, evaluate_every=0).until_over()
    assert [len(report.metrics) for report in driver.reports] == [0, 0, 0, 0, 1]


def test_a_model_that_does_not_change_any_more_ends_the_job() -> None:
    nodes = [ScriptedNode(f"n{index}", constant(0.0), 4) for index in range(3)]
    driver = Driver(nodes, rounds=9).until_over()
    assert driver.machine.card().round == 1 and "does not change" in driver.machine.card().text


def test_a_share_of_the_nodes_is_drawn_for_each_round() -> None:
    nodes = some_nodes(8)
    driver = Driver(nodes, rounds=6, fraction=0.5, seed=bytes(32)).until_over()
    assert [report.nodes for report in driver.reports] == [4] * 7
    again = Driver(some_nodes(8), rounds=6, fraction=0.5, seed=bytes(32)).until_over()
    drawn = [[number for _, number, _ in node.asked if number] for node in nodes]
    assert drawn == [[number for _, number, _ in node.asked if number] for node in again.nodes.values()]
    assert len({tuple(one) for one in drawn}) > 1


# ---------------------------------------------------------------- losses


@pytest.mark.parametrize("forget", [True, False])
@pytest.mark.parametrize("leg", LEGS)
def test_one_of_five_is_lost_in_any_leg(leg: str, forget: bool) -> None:
    nodes = some_nodes(5)
    driver = Driver(nodes, rounds=2)
    driver.until(lambda what: what == f"answer {leg}")
    driver.lose(nodes[4].id, forget=forget)
    driver.until_over()
    first = driver.reports[0]
    in_the_sum = leg in ("round-survivors", "round-unmask")  # its input had come before
    assert first.nodes == (5 if in_the_sum else 4)
    assert first.text == "" if in_the_sum else first.text.removesuffix(" (it was lost)") == "without node-4"
    expected = moves(nodes if in_the_sum else nodes[:4]) + moves(nodes[:4])
    assert np.allclose(driver.weights, expected, rtol=1e-5)


@pytest.mark.parametrize("well_sealed", [False, True])
def test_a_node_that_seals_garbage_is_left_out_and_those_who_say_so_are_not(
    well_sealed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = some_nodes(5)
    share, seal = Party.share, secagg_party.seal_shares

    def no_elements(mine: Any, me: PeerId, to: Any, context: bytes, *shares: bytes) -> bytes:
        return seal(mine, me, to, context, *([b"\xff" * 32] * 2 if me == nodes[4].id else shares))

    def garbled(party: Party, roster: Any) -> dict[PeerId, bytes]:
        sealed = share(party, roster)
        return {peer: bytes(len(one)) for peer, one in sealed.items()} if party._me is nodes[4].me else sealed

    if well_sealed:
        monkeypatch.setattr(secagg_party, "seal_shares", no_elements)
    else:
        monkeypatch.setattr(Party, "share", garbled)
    driver = Driver(nodes, rounds=2).until_over()
    assert driver.machine.progress.state == "done" and [report.nodes for report in driver.reports] == [4, 4, 4]
    assert all("without node-4" in report.text for report in driver.reports)
    assert np.allclose(driver.weights, 2 * moves(nodes[:4]), rtol=1e-5)


@pytest.mark.parametrize("which", ["cipher", "mask", "both"])
def test_a_node_whose_keys_nobody_can_take_is_left_out_alone(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of small order, or one key twice: every honest node would fail on it in a later leg."""
    nodes = some_nodes(5)
    sign = secagg_party.sign_keys

    def unfit(me: Any, *args: Any, **keys: Any) -> bytes:
        bad = {"cipher": keys["mask"]} if which == "both" else {which: bytes(32)}
        return sign(me, *args, **(keys | (bad if me is nodes[4].me else {})))

    monkeypatch.setattr(secagg_party, "sign_keys", unfit)
    driver = Driver(nodes, rounds=1).until_over()
    assert driver.machine.progress.state == "done" and [report.nodes for report in driver.reports] == [4, 4]
    assert "without node-4" in driver.reports[0].text


@pytest.mark.parametrize(("count", "accusers"), [(7, 2), (4, 1)])
def test_few_who_say_that_others_sealed_nothing_for_them_are_left_out_themselves(count: int, accusers: int) -> None:
    """Else two of seven could have others leave one by one, until one is left with them: the sum less theirs is its update."""
    nodes = some_nodes(count)

    def accuse(node: ScriptedNode, message: Message) -> None:
        if message.tag == "round-shares":
            others = {one.peer for one in message.shares}  # type: ignore[attr-defined]
            victim = next(one for one in nodes[accusers:] if one.id in others)
            raise AuthenticationFailed("its share was not sealed for this node", peer=victim.id)

    for node in nodes[:accusers]:
        node.before = accuse
    driver = Driver(nodes, rounds=1).until_over()
    assert driver.machine.card().state == "done", driver.machine.card().text
    assert driver.reports[0].nodes == count - accusers
    assert np.allclose(driver.weights, moves(nodes[accusers:]), rtol=1e-5)


def lying(driver: Driver, node: ScriptedNode) -> None:
    """The node reveals random shares in leg 4."""
    deliver = driver._answer

    def answer(ask: Any, session: Any, message: Any) -> None:
        if isinstance(message, RoundReveal) and ask.peer == node.id:
            noise = [dataclasses.replace(one, data=one.data[:1] + shamir.random_secret()) for one in message.shares]
            message = RoundReveal(shares=tuple(noise))
        deliver(ask, session, message)

    driver._answer = answer  # type: ignore[method-assign]


def test_a_node_that_reveals_garbage_is_named_and_set_aside_and_the_sum_opens_without_it() -> None:
    nodes = some_nodes(5)
    liar = min(nodes, key=lambda node: node.id)  # the first who answers: its shares are among those that are looked at
    others = [node for node in nodes if node is not liar]
    driver = Driver(nodes, rounds=3)
    lying(driver, liar)
    driver.until_over()
    assert driver.machine.card().state == "done"
    assert [report.nodes for report in driver.reports] == [5, 4, 4, 4]
    assert driver.reports[0].text == f"with wrong shares of {liar.me.name}, which were left out"
    assert all(f"without {liar.me.name}" in report.text for report in driver.reports[1:])
    assert np.allclose(driver.weights, moves(nodes) + 2 * moves(others), rtol=1e-5)


@pytest.mark.parametrize("killed", [False, True])
def test_where_the_shares_that_came_do_not_suffice_beside_wrong_ones_others_are_waited_for(killed: bool) -> None:
    nodes = some_nodes(4)
    driver = Driver(nodes, rounds=1)
    liar, *_, lost = sorted(nodes, key=lambda node: node.id)  # the first's shares are looked at in any case
    lying(driver, liar)
    driver.until(lambda what: what == "ask round-unmask")
    driver.lose(lost.id)
    driver.until(lambda what: what == "worked open")
    assert driver.machine.text == f"round 1 takes the masks off of {lost.me.name}"
    if killed:
        driver.kill()
        driver.until(lambda what: what == "time")
    driver.back(lost.id)
    driver.until_over()
    assert driver.machine.card().state == "done" and driver.reports[0].nodes == 4
    assert driver.reports[0].text.startswith(f"with wrong shares of {liar.me.name}, which were left out")
    assert np.allclose(driver.weights, moves(nodes), rtol=1e-5)


def test_three_nodes_of_which_one_reveals_garbage_end_the_job_and_say_why() -> None:
    nodes = some_nodes(3)
    driver = Driver(nodes, rounds=2)
    lying(driver, nodes[1])
    card = driver.until_over().machine.card()
    assert card.state == "failed" and "sent wrong ones, and without 3 right ones this sum can't be opened" in card.text


def test_a_sum_that_nobody_could_have_put_in_ends_the_job_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = some_nodes(4)
    masked = Party.masked

    def garbled(party: Party, shares: Any, vector: Any) -> Any:
        real = masked(party, shares, vector)
        return ~real if party._me is nodes[3].me else real

    monkeypatch.setattr(Party, "masked", garbled)
    driver = Driver(nodes, rounds=2).until_over()
    assert driver.machine.progress.state == "failed" and not driver.reports
    assert "one of them does not follow the protocol" in driver.machine.card().text


@pytest.mark.parametrize("there", [True, False])
def test_a_node_that_owes_its_part_of_an_opening_is_waited_for_beyond_the_deadline(there: bool) -> None:
    nodes = some_nodes(3)
    driver = Driver(nodes, rounds=2)
    silent: list[Message] = []

    def before(node: ScriptedNode, message: Message) -> None:
        if message.tag == "round-unmask" and not silent:
            silent.append(message)
            raise DeadlineExceeded("it said nothing in time")

    if there:
        nodes[2].before = before
    else:
        driver.until(lambda what: what == "ask round-unmask")
        driver.lose(nodes[2].id)
        while driver.now < 1.5 * driver.spec.deadline_s:
            driver.until(lambda what: what == "time")
        driver.back(nodes[2].id)
    driver.until_over()
    assert driver.machine.progress.state == "done" and [report.nodes for report in driver.reports] == [3, 3, 3]
    assert bool(silent) == there and np.allclose(driver.weights, 2 * moves(nodes), rtol=1e-5)


def test_a_sum_that_never_opens_ends_the_job_and_names_who_is_missing() -> None:
    nodes = some_nodes(3)
    driver = Driver(nodes, rounds=2)
    driver.until(lambda what: what == "ask round-unmask")
    driver.lose(nodes[2].id)
    driver.until_over()
    card = driver.machine.card()
    assert card.state == "failed" and "node-2" in card.text and driver.now < 5 * driver.spec.deadline_s


def test_a_model_that_is_trained_is_there_though_it_cannot_be_evaluated() -> None:
    nodes = some_nodes(3)

    def before(node: ScriptedNode, message: Message) -> None:
        if isinstance(message, BeginRound) and message.evaluate_only:
            raise ReleaseDenied("not this", rule="any")

    nodes[1].before = before
    driver = Driver(nodes, rounds=2).until_over()
    card = driver.machine.card()
    assert (card.state, card.round) == ("done", 2) and "could not be evaluated" in card.text
    assert np.allclose(driver.weights, 2 * moves(nodes), rtol=1e-5)


@pytest.mark.parametrize("leg", LEGS)
def test_three_nodes_wait_for_the_one_that_is_lost(leg: str) -> None:
    nodes = some_nodes(3)
    driver = Driver(nodes, rounds=2)
    driver.until(lambda what: what == f"ask {leg}")
    driver.lose(nodes[2].id)
    driver.until(lambda what: what == "time")
    driver.until(lambda what: what == "time")
    assert "node-2" in driver.machine.card().text
    driver.back(nodes[2].id)
    driver.until_over()
    assert driver.now < driver.spec.deadline_s and all(report.nodes == 3 for report in driver.reports)
    assert driver.reports[0].text == "waited 2.0 s for node-2"
    assert np.allclose(driver.weights, 2 * moves(nodes), rtol=1e-5)


@pytest.mark.parametrize("leg", LEGS[:4])
def test_three_nodes_go_on_with_one_that_was_killed_and_started_again(leg: str) -> None:
    """Its secrets are gone; what it had not opened before is done again under another number."""
    nodes = some_nodes(3)
    driver = Driver(nodes, rounds=2)
    driver.until(lambda what: what == f"ask {leg}")
    driver.lose(nodes[2].id, forget=True)
    driver.until(lambda what: what == "time")
    driver.back(nodes[2].id)
    driver.until_over()
    assert driver.machine.card().state == "done" and np.allclose(driver.weights, 2 * moves(nodes), rtol=1e-5)
    assert driver.reports[0].text in ("waited 1.0 s for node-2", "after 1 round that came to nothing")


def test_the_first_round_waits_for_nodes_that_have_come_longer_than_for_those_that_have_not() -> None:
    nodes = some_nodes(5)
    nodes[4].here = False
    driver = Driver(nodes, rounds=1, deadline_s=80.0)
    held: list[Callable[[], None]] = []
    deliver = driver._answer

    def late(ask, session, answer):  # type: ignore[no-untyped-def]
        if ask.key == OFFER and ask.peer == nodes[3].id:
            held.append(lambda: deliver(ask, session, answer))
        else:
            deliver(ask, session, answer)

    driver._answer = late  # type: ignore[method-assign]
    while driver.now < 9.0:
        driver.step()
    assert driver.machine.card().state == "waiting" and "node-3" in driver.machine.card().text
    held[0]()
    driver.until_over()
    assert driver.reports[0].nodes == 4 and driver.reports[0].text == "without node-4"


def test_a_late_joiner_takes_part_from_the_next_round_on() -> None:
    nodes = some_nodes(4)
    nodes[3].here = False
    driver = Driver(nodes, rounds=3)
    driver.until(lambda what: what == "answer round-shares")
    driver.back(nodes[3].id)
    driver.until_over()
    assert [report.nodes for report in driver.reports] == [3, 4, 4, 4]


@pytest.mark.parametrize("leg", LEGS[:2])
def test_many_that_are_lost_at_once_cost_one_further_attempt(leg: str) -> None:
    nodes = some_nodes(10)
    driver = Driver(nodes, rounds=1)
    driver.until(lambda what: what == f"ask {leg}")
    for node in nodes[6:]:
        driver.lose(node.id)
    driver.until(lambda what: what == "kept report")
    assert driver.reports[0].nodes == 6 and max(attempt for _, _, attempt in nodes[0].asked) == 2


def test_a_straggler_is_cut_off_at_the_deadline_and_its_late_answer_counts_for_nothing() -> None:
    nodes = some_nodes(4)
    driver = Driver(nodes, rounds=2)
    held: list[Callable[[], None]] = []
    deliver = driver._answer

    def late(ask, session, answer):  # type: ignore[no-untyped-def]
        if ask.message.tag == "round-shares" and ask.peer == nodes[3].id and ask.key[0] == 1:
            held.append(lambda: deliver(ask, session, answer))
        else:
            deliver(ask, session, answer)

    driver._answer = late  # type: ignore[method-assign]
    driver.until(lambda what: what == "kept report")
    assert driver.now >= driver.spec.deadline_s and driver.reports[0].nodes == 3
    held[0]()  # the second round has begun without it
    driver.until_over()
    assert [report.nodes for report in driver.reports] == [3, 3, 4]
    assert [report.text for report in driver.reports[:2]] == ["without node-3 (it was late)", "without node-3"]
    assert np.allclose(driver.weights, 2 * moves(nodes[:3]), rtol=1e-5)


def silent(driver: Driver, node: ScriptedNode, leg: str) -> list[Callable[[], None]]:
    """From now on the node's answers in this leg do not arrive; what is returned delivers them."""
    held: list[Callable[[], None]] = []
    deliver = driver._answer

    def answer(ask: Any, session: Any, message: Any) -> None:
        if ask.message.tag == leg and ask.peer == node.id:
            held.append(lambda: deliver(ask, session, message))
        else:
            deliver(ask, session, message)

    driver._answer = answer  # type: ignore[method-assign]
    return held


@pytest.mark.parametrize("leg", [*LEGS[:4], "single"])  # the last leg does not wait for one that is not needed
def test_a_node_that_is_silent_in_a_leg_is_asked_now_and_then(leg: str) -> None:
    nodes = some_nodes(4)
    driver = Driver(nodes, rounds=7, secure=leg != "single")
    silent(driver, nodes[3], "begin-round" if leg == "single" else leg)
    driver.until_over()
    asked = sorted({number for _, number, _ in nodes[3].asked if number})
    assert asked == [1, 6]  # 4 rounds without it, then 8
    patience = 1.0 if leg in ("round-shares", "single") else 0.25
    assert driver.now == pytest.approx(2 * patience * driver.spec.deadline_s)
    with_it = asked if leg == "round-survivors" else []
    assert [report.nodes for report in driver.reports] == [4 if number in with_it else 3 for number in range(1, 9)]
    assert all("without node-3" in report.text for report in driver.reports if report.nodes == 3)


@pytest.mark.parametrize("life", ["a new channel", "its offer", "a late answer"])
def test_a_node_that_was_set_aside_is_back_as_soon_as_it_shows_life(life: str) -> None:
    nodes = some_nodes(4)
    driver = Driver(nodes, rounds=6)
    held = silent(driver, nodes[3], "round-shares")
    driver.until(lambda what: what == "kept report")
    driver.until(lambda what: what == "kept report")
    assert [number for tag, number, _ in nodes[3].asked if tag == "begin-round"] == [1]
    del driver._answer  # from now on it is heard
    if life == "a late answer":
        held[0]()
    elif life == "its offer":
        driver.perform(driver.machine.answered(nodes[3].id, OFFER, Ok(), driver.now))
    else:
        driver.lose(nodes[3].id)
        driver.back(nodes[3].id)
    driver.until_over()
    assert [report.nodes for report in driver.reports] == [3, 3, 3, 4, 4, 4, 4]
    assert driver.now == driver.spec.deadline_s


def test_a_node_that_is_late_time_and_again_waits_out_its_pauses_though_it_shows_life() -> None:
    nodes = some_nodes(4)
    driver = Driver(nodes, rounds=20)
    held = silent(driver, nodes[3], "round-shares")
    while not driver.machine.settled:
        driver.step()
        if driver.now and not driver.now % driver.spec.deadline_s:
            while held and driver.machine.progress.number > held_round(nodes[3]):
                held.pop()()
    asked = sorted({number for _, number, _ in nodes[3].asked if number})
    assert asked[:4] == [1, 3, 5, 7] and asked[4:] == []  # then 32 rounds without it


def held_round(node: ScriptedNode) -> int:
    return max(number for tag, number, _ in node.asked if tag == "begin-round")


@pytest.mark.parametrize("leg", LEGS)
def test_a_node_that_is_there_and_never_answers_is_named_when_the_job_fails(leg: str) -> None:
    nodes = some_nodes(3)
    driver = Driver(nodes)
    silent(driver, nodes[1], leg)
    card = driver.until_over().machine.card()
    assert card.state == "failed" and "node-1" in card.text and "node-0" not in card.text


@pytest.mark.parametrize("secure", [True, False])
def test_a_node_without_which_there_is_no_quorum_is_drawn_though_it_was_late(secure: bool) -> None:
    nodes = some_nodes(3)
    driver = Driver(nodes, rounds=2, secure=secure)
    held = silent(driver, nodes[2], "round-shares" if secure else "begin-round")
    driver.until(lambda what: what == "kept lost")
    held.clear()
    del driver._answer
    driver.until_over()
    assert [report.nodes for report in driver.reports] == [3, 3, 3]
    assert driver.reports[0].text == "after 1 round that came to nothing"


@pytest.mark.parametrize("secure", [True, False])
def test_a_job_that_does_not_get_on_fails_and_names_who_is_missing(secure: bool) -> None:
    nodes = some_nodes(3)
    nodes[1].here = False
    driver = Driver(nodes, rounds=2, secure=secure).until_over()
    card = driver.machine.card()
    assert card.state == "failed" and card.error is not None and card.error.code == QuorumLost.code
    assert "missing: node-1" in card.error.message and driver.now == pytest.approx(3 * driver.spec.deadline_s)


def test_twenty_percent_lost_at_random_moments_over_fifty_rounds() -> None:
    """In each round one of five goes, in half of the cases as a killed process, and comes back in the next."""
    chance = random.Random(7)
    nodes = some_nodes(5)
    driver = Driver(nodes, rounds=50, min_nodes=3)
    away: list[ScriptedNode] = []
    moments: list[int] = []
    number = 0
    while not driver.machine.settled:
        if driver.machine.progress.number != number:
            number = driver.machine.progress.number
            moments = [driver.steps + chance.randrange(1, 55)]
            while away:
                driver.back(away.pop().id)
        if driver.steps in moments:
            away.append(chance.choice([node for node in nodes if node not in away]))
            driver.lose(away[-1].id, forget=chance.random() < 0.5)
        driver.step()
    card = driver.machine.card()
    assert (card.state, card.round) == ("done", 50), card.text
    assert sum(report.nodes < 5 for report in driver.reports) > 20
    expected = np.zeros(6)
    for report in driver.reports[:50]:
        without = report.text.replace(" (it was lost)", "").split(";")[0].removeprefix("without ")
        lost = set(without.split(", ")) if report.text else set()
        expected += moves([node for node in nodes if node.me.name not in lost])
    assert np.allclose(driver.weights, expected, rtol=1e-5)


@pytest.mark.parametrize(("count", "fraction"), [(3, 1.0), (6, 0.5)])
@pytest.mark.parametrize("secure", [True, False])
def test_a_job_in_which_rounds_were_lost_ends_as_one_in_which_none_was(secure: bool, count: int, fraction: float) -> None:
    """What is drawn, scheduled and evaluated goes by the index of a round: lost ones do not count."""
    spared: set[int] = set()

    def before(node: ScriptedNode, message: Message) -> None:
        """The rounds 2 and 5 fail once at the first node that is asked in leg 2, or without masks for its update."""
        if isinstance(message, RoundShares if secure else BeginRound):
            index = node.begun[message.job, message.round, message.attempt].index if secure else message.index
            if index in {2, 5} - spared:
                spared.add(index)
                raise InvalidRequest("something went wrong here")

    def run(before: Callable[[ScriptedNode, Message], None] | None) -> Driver:
        nodes = [ScriptedNode(f"n{place}", lambda w, index, k=place: np.full_like(w, k * index), 1) for place in range(count)]
        for node in nodes:
            node.before = before or node.before
        return Driver(nodes, rounds=5, evaluate_every=2, secure=secure, fraction=fraction, seed=bytes(32)).until_over()

    whole, lossy = run(None), run(before)
    assert (lossy.machine.rounds_lost, lossy.machine.progress.number) == (2, whole.machine.progress.number + 2)
    assert np.array_equal(lossy.weights, whole.weights)
    assert [report.metrics for report in lossy.reports] == [report.metrics for report in whole.reports]
    assert [len(report.metrics) for report in whole.reports] == [1, 0, 1, 0, 1, 1]


# ---------------------------------------------------------------- restarts


def deliveries(**changes: object) -> int:
    return Driver(some_nodes(4), rounds=2, **changes).until_over().steps


@pytest.mark.parametrize("secure", [True, False])
def test_a_gateway_killed_at_any_moment_ends_with_the_same_model(secure: bool) -> None:
    whole = Driver(some_nodes(4), rounds=2, secure=secure).until_over()
    for moment in range(2, whole.steps, 4 if secure else 3):
        driver = Driver(some_nodes(4), rounds=2, secure=secure)
        for _ in range(moment):
            driver.step()
        if driver.machine.settled:
            continue
        driver.kill()
        driver.until_over()
        card = driver.machine.card()
        assert (card.state, card.round) == ("done", 2), f"killed after {moment} deliveries: {card.text}"
        assert np.array_equal(driver.weights, whole.weights), f"killed after {moment} deliveries"
        assert [report.round for report in driver.reports] == [1, 2, 2]
        assert [report.metrics for report in driver.reports] == [report.metrics for report in whole.reports]


def test_a_gateway_killed_in_every_round_and_leg() -> None:
    driver = Driver(some_nodes(4), rounds=5)
    for leg in LEGS:
        driver.until(lambda what, leg=leg: what == f"answer {leg}")
        driver.kill()
    driver.until_over()
    assert driver.machine.card().state == "done" and np.allclose(driver.weights, 5 * moves(some_nodes(4)), rtol=1e-5)


def test_a_kept_sum_is_opened_without_any_node_once_the_shares_have_come() -> None:
    nodes = some_nodes(4)
    driver = Driver(nodes, rounds=1)
    driver.until(lambda what: what == "keep reveals")
    for node in nodes:
        driver.lose(node.id)
    driver.kill()
    driver.until(lambda what: what == "kept report")
    assert driver.reports[0].nodes == 4 and np.allclose(driver.weights, moves(nodes), rtol=1e-6)


def test_state_of_the_strategy_survives_a_kill() -> None:
    strategy = {"kind": "fedavgm", "lr": 1.0, "momentum": 0.5}
    whole = Driver(some_nodes(4), rounds=4, strategy=strategy).until_over()
    driver = Driver(some_nodes(4), rounds=4, strategy=strategy)
    for _ in range(3):
        driver.until(lambda what: what == "kept report")
        driver.kill()
    driver.until_over()
    assert np.array_equal(driver.weights, whole.weights)


# ---------------------------------------------------------------- refusals


def test_who_does_not_take_the_job_is_named_with_the_reason() -> None:
    nodes = some_nodes(3)
    nodes[0].before = refuse("offer-job", ReleaseDenied("the owner allows no jobs", rule="jobs"))
    driver = Driver(nodes).until_over()
    card = driver.machine.card()
    assert card.state == "failed" and card.error is not None and card.error.code == "release-denied"
    assert "node-0 refused: the owner allows no jobs" in card.text
    assert nodes[1].ended == [card.text]


def test_a_node_that_refuses_is_done_without_where_others_suffice() -> None:
    nodes = some_nodes(4)
    nodes[0].before = refuse("offer-job", ReleaseDenied("no"))
    driver = Driver(nodes, rounds=2).until_over()
    assert [report.nodes for report in driver.reports] == [3, 3, 3]


@pytest.mark.parametrize("leg", LEGS)
def test_a_node_that_finds_every_range_too_narrow_is_done_without(leg: str) -> None:
    nodes = some_nodes(5)
    nodes[0].before = refuse(leg, ReleaseDenied("the range does not fit", rule=MISFIT))
    driver = Driver(nodes, rounds=2).until_over()
    assert driver.machine.card().state == "done", driver.machine.card().text
    in_the_sum = leg in ("round-survivors", "round-unmask")  # its input had come before
    assert driver.reports[0].nodes == (5 if in_the_sum else 4)


def test_details_of_a_refusal_are_passed_on_whatever_they_are_called() -> None:
    error = InvalidRequest("no")
    error.details = {"message": "x", "self": 1, "peer": "x" * 5000}
    nodes = some_nodes(3)
    nodes[0].before = refuse("round-shares", error)
    card = Driver(nodes).until_over().machine.card()
    assert card.state == "failed" and card.error is not None and card.error.code == "invalid" and card.error.details["self"] == 1


def test_a_node_where_others_train_at_present_is_asked_again() -> None:
    nodes = some_nodes(3)
    times = itertools.count()

    def busy(node: ScriptedNode, message: Message) -> None:
        if message.tag == "offer-job" and next(times) < 2:
            raise QuotaExceeded("8 federated jobs train at this node already", limit="max_trainings")

    nodes[0].before = busy
    driver = Driver(nodes, rounds=1)
    driver.until(lambda what: what == "time" and "waits for nodes" in driver.machine.text)
    assert "2 of the 3 nodes that are needed are there; node-0: 8 federated jobs train" in driver.machine.text
    driver.until_over()
    assert driver.machine.card().state == "done" and next(times) == 3 and driver.reports[0].nodes == 3


def test_a_busy_node_does_not_hold_up_the_start_of_a_job() -> None:
    nodes = some_nodes(4)
    nodes[0].before = refuse("offer-job", QuotaExceeded("8 federated jobs train at this node already", limit="max_trainings"))
    driver = Driver(nodes, rounds=1).until_over()
    assert driver.machine.card().state == "done" and driver.reports[0].nodes == 3
    assert driver.now == 0.0, "it has answered"


def test_a_job_that_waited_for_a_busy_node_alone_says_why_it_gave_up() -> None:
    nodes = some_nodes(3)
    nodes[0].before = refuse("offer-job", QuotaExceeded("8 federated jobs train at this node already", limit="max_trainings"))
    card = Driver(nodes, rounds=1).until_over().machine.card()
    assert card.error is not None and card.error.code == "quorum-lost"
    assert card.text.endswith("missing: node-0; node-0: 8 federated jobs train at this node already")


def test_a_limit_that_does_not_get_better_by_itself_is_a_refusal() -> None:
    nodes = some_nodes(3)
    error = QuotaExceeded("the job's model is more than this node trains", limit="max_bytes_per_client")
    nodes[0].before = refuse("offer-job", error)
    driver = Driver(nodes, rounds=1).until_over()
    assert driver.now < driver.spec.deadline_s
    card = driver.machine.card()
    assert card.state == "failed" and "node-0 refused: the job's model is more than this node trains" in card.text
    assert card.error is not None and card.error.code == "quota"


def test_why_a_node_is_left_out_is_told_once() -> None:
    nodes = some_nodes(4)
    nodes[0].before = refuse("offer-job", ReleaseDenied("the owner allows no jobs"))
    texts = [report.text for report in Driver(nodes, rounds=3).until_over().reports]
    assert texts[0] == "without node-0 (the owner allows no jobs)" and texts[1:3] == ["without node-0"] * 2


@pytest.mark.parametrize(("count", "again"), [(5, False), (3, True)])
def test_one_that_cannot_train_does_not_end_a_job_that_others_can_go_on_with(count: int, again: bool) -> None:
    """A liar, say; or a process that was killed, of which the next round starts another."""
    nodes = some_nodes(count)
    rounds = itertools.count()

    def fails(node: ScriptedNode, message: Message) -> None:
        if message.tag == "round-shares" and next(rounds) < 1:
            raise ExecutionFailed("local training failed", **({"again": True} if again else {}))

    nodes[0].before = fails
    driver = Driver(nodes, rounds=2)
    driver.until(lambda what: what == "answer round-shares")
    if not again:
        driver.lose(nodes[1].id)
        driver.lose(nodes[2].id)
        driver.until(lambda what: driver.machine.rounds_lost == 1)
        driver.back(nodes[1].id)
        driver.back(nodes[2].id)
    driver.until_over()
    assert driver.machine.card().state == "done", driver.machine.card().text
    assert driver.machine.rounds_lost == 1 and driver.reports[-1].nodes == count


def test_a_model_that_cannot_be_trained_is_not_tried_again() -> None:
    """Each failure on private rows counts at the nodes, which refuse a client that has many."""
    nodes = some_nodes(3)
    asked = itertools.count()

    def diverges(node: ScriptedNode, message: Message) -> None:
        if message.tag == "round-shares":
            next(asked)
            raise ExecutionFailed("the weights after local training are not finite")

    for node in nodes:
        node.before = diverges
    card = Driver(nodes, rounds=2).until_over().machine.card()
    assert card.state == "failed" and card.error is not None and card.error.code == "execution"
    assert next(asked) <= len(nodes) and "not finite" in card.text


@pytest.mark.parametrize("leg", LEGS)
def test_rounds_that_nodes_refuse_end_the_job_with_what_they_said(leg: str) -> None:
    nodes = some_nodes(3)
    nodes[1].before = refuse(leg, InvalidRequest("training diverged here"))
    card = Driver(nodes).until_over().machine.card()
    assert card.state == "failed" and card.error is not None and card.error.code == "invalid"
    assert "node-1: training diverged here" in card.text


@pytest.mark.parametrize(
    "fields",
    [
        {"examples": 1000},
        {"examples": -1},
        {"metrics": (1.0,)},
        {"metrics": (1.0, float("nan"))},
        {"metrics": (1.0, 1e300)},
        {"update": None},
        {"update": frame_of(np.zeros(7, "f4"))},
        {"update": frame_of(np.full(6, np.inf, "f4"))},
        {"update": frame_of(np.full(6, 1e300))},
        {"update": frame_of(np.zeros(6, "i4"))},
    ],
)
def test_a_single_update_that_does_not_fit_is_left_out(fields: dict[str, Any]) -> None:
    nodes = some_nodes(4)
    driver = Driver(nodes, rounds=1, secure=False)
    deliver = driver._answer

    def changed(ask, session, answer):  # type: ignore[no-untyped-def]
        if isinstance(answer, SingleUpdate) and ask.peer == nodes[0].id and not ask.message.evaluate_only:
            answer = dataclasses.replace(answer, **fields)
        deliver(ask, session, answer)

    driver._answer = changed  # type: ignore[method-assign]
    driver.until_over()
    assert driver.reports[0].nodes == 3 and driver.reports[0].text.startswith("without node-0 (an update ")
    assert np.allclose(driver.weights, moves(nodes[1:]), rtol=1e-6)


@pytest.mark.parametrize("leg", LEGS)
def test_an_answer_of_another_kind_leaves_its_node_out(leg: str) -> None:
    nodes = some_nodes(4)
    driver = Driver(nodes, rounds=1)
    deliver = driver._answer

    def changed(ask, session, answer):  # type: ignore[no-untyped-def]
        hostile = ask.message.tag == leg and ask.peer == nodes[0].id and not driver.machine._evaluating
        deliver(ask, session, Ok() if hostile else answer)

    driver._answer = changed  # type: ignore[method-assign]
    driver.until_over()
    assert driver.machine.card().state == "done"
    counted = nodes if leg in ("round-survivors", "round-unmask") else nodes[1:]
    assert np.allclose(driver.weights, moves(counted), rtol=1e-6)


def test_a_metric_that_is_not_finite_is_told_as_none() -> None:
    nodes = [ScriptedNode(f"n{index}", constant(1.0), 4) for index in range(3)]
    for node in nodes:
        node._sums = lambda weights: np.array([np.inf, 4.0])  # type: ignore[method-assign]
    driver = Driver(nodes, rounds=1, secure=False).until_over()
    assert [report.metrics for report in driver.reports] == [(None,), (None,)] and driver.machine.card().state == "done"


@pytest.mark.parametrize("count", [3, 4])
def test_a_range_that_is_too_narrow_for_a_node_is_given_up(count: int) -> None:
    """The round is done again for all: to leave that node out would bend the model."""
    nodes = some_nodes(count)

    def before(node: ScriptedNode, message: Message) -> None:
        if isinstance(message, RoundShares):
            key = (message.job, message.round, message.attempt)
            if node.parties[key].terms.quantiser.clip < FIRST_CLIP and not node.begun[key].evaluate_only:
                raise ReleaseDenied("too many coordinates lie beyond the range", rule=MISFIT)

    nodes[0].before = before
    driver = Driver(nodes, rounds=7).until_over()
    assert driver.machine.card().state == "done" and driver.machine.card().round == 7
    # After three, whatever it is, a node takes only the widest.
    assert {report.nodes for report in driver.reports} == {count} and driver.machine.rounds_lost == 3


def test_what_is_worked_out_for_a_lost_round_is_nothing_to_the_next() -> None:
    """An input was still being added up when the round was lost: the node has answered nothing in the round after it."""
    nodes = some_nodes(3)
    refusals, held = itertools.count(), list[str]()

    def misfits(node: ScriptedNode, message: Message) -> None:
        if message.tag == "round-shares" and next(refusals) == 0:
            raise ReleaseDenied("a coordinate lies beyond the range", rule=MISFIT)

    nodes[2].before = misfits
    driver = Driver(nodes, rounds=2)
    worked = driver.machine.worked

    def late(name: str, result: Any, now: float) -> list[Effect]:
        if name.startswith("input") and not held:
            held.append(name)
            return []
        return worked(name, result, now)

    driver.machine.worked = late  # type: ignore[method-assign]
    driver.until(lambda what: bool(held) and driver.machine.rounds_lost == 1)
    driver.perform(worked(held[0], None, driver.now))
    assert driver.machine.text == "round 2 collects keys of node-0, node-1, node-2"
    driver.until_over()
    assert driver.machine.card().state == "done" and {report.nodes for report in driver.reports} == {3}
    assert np.allclose(driver.weights, 2 * moves(nodes), rtol=1e-5)


def test_updates_that_no_usual_range_holds_are_given_a_wider_one() -> None:
    nodes = [ScriptedNode(f"n{index}", constant(1e6 * (index + 1)), 1) for index in range(3)]
    driver = Driver(nodes, rounds=2).until_over()
    assert driver.machine.card().state == "done", driver.machine.card().text
    assert np.allclose(driver.weights, 4e6, rtol=1e-6) and not any(report.clipped for report in driver.reports)


def test_the_wide_range_that_fitted_is_remembered() -> None:
    """Updates that are large and cancel: the mean's range is too narrow, and so would the first one be in each round."""
    nodes = [ScriptedNode(f"n{index}", constant(value), 1) for index, value in enumerate((1e6, 1.0, -1e6))]
    driver = Driver(nodes, rounds=8).until_over()
    assert driver.machine.card().state == "done", driver.machine.card().text
    assert driver.machine.rounds_lost == 3 and driver.machine.progress.misfits == 3


def test_a_model_that_diverges_ends_the_job() -> None:
    nodes = [ScriptedNode(f"n{index}", constant(1e30), 1) for index in range(3)]
    strategy = {"kind": "fedavg", "lr": 1000.0}
    card = Driver(nodes, np.full(3, 3.4028234e38, "f4"), rounds=50, secure=False, strategy=strategy).until_over().machine.card()
    assert card.state == "failed" and "NaN or infinite" in card.text and card.round == 0


def test_a_cancelled_job_keeps_its_model() -> None:
    nodes = some_nodes(3)
    driver = Driver(nodes, rounds=1000)
    driver.until(lambda what: what == "kept report")
    driver.until(lambda what: what == "answer round-shares")
    driver.perform(driver.machine.cancel(driver.now))
    driver.until_over()
    card = driver.machine.card()
    assert (card.state, card.round) == ("cancelled", 1) and np.allclose(driver.weights, moves(nodes)) and nodes[0].ended


def test_a_stuck_round_explains_itself() -> None:
    nodes = some_nodes(3)
    driver = Driver(nodes)
    driver.until(lambda what: what == "ask round-shares")
    driver.lose(nodes[0].id)
    told = [line.text for line in driver.machine.story.lines()]
    assert "node node-0 left" in told and any("waits for updates" in text for text in told)
    numbers = [line.number for line in driver.machine.story.lines()]
    assert numbers == sorted(numbers) and isinstance(driver.machine._round, AnyRound)
