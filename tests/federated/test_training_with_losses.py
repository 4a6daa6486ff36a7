"""Fifty rounds of real local training, with nodes lost at random moments: the model is that of those who took part in each."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import torch
from training_models import classes, mlp, plain_training, plans_of, trainer, vectors, weights_of

from grid.errors import InvalidRequest
from grid.federated.draws import Draws
from grid.federated.local import Local
from grid.federated.schedules import CosineSchedule
from grid.ids import PeerId
from grid.plans.optimizers import SGD
from grid.wire.jobs import RoundShares, RoundSurvivors
from grid.wire.messages import Message
from tests.federated.job_driver import Driver
from tests.federated.scripted_nodes import ScriptedNode

NODES, ROUNDS, BATCH, LR = 5, 50, 8, 0.2
LOCAL = Local(epochs=1, batch_size=BATCH, optimizer=SGD(lr=LR), schedule=CosineSchedule(length=ROUNDS))

Cohorts = dict[tuple[int, int], tuple[int, frozenset[PeerId]]]
"""(Round's number, attempt) -> its index, and whose inputs the sum was made of."""


def rows(place: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Nodes differ in how many rows they have."""
    return vectors(16 + 4 * place, seed=place), classes(16 + 4 * place, seed=place)


def seed_of(place: int) -> bytes:
    return b"the seed of node %d" % place


def training_node(place: int, cohorts: Cohorts, to_lose: set[int]) -> ScriptedNode:
    """A node whose updates a `Trainer` makes of its rows, by the round's index. It notes whose sum it helps to open, and
    fails where it is the first to be asked for its update in one of the rounds `to_lose`, which loses the round.
    """
    x, y = rows(place)
    own = trainer(plans_of(mlp), LOCAL, x, y)
    node = ScriptedNode(
        f"node-{place}",
        lambda weights, index: own.train(weights, round=index, seed=seed_of(place), metrics=False).update,
        len(x),
    )

    def before(node: ScriptedNode, message: Message) -> None:
        if not isinstance(message, RoundShares | RoundSurvivors):
            return
        begun = node.begun.get((message.job, message.round, message.attempt))
        if begun is None:
            return
        if isinstance(message, RoundSurvivors) and begun.index:
            cohorts[message.round, message.attempt] = begun.index, frozenset(message.survivors)
        if isinstance(message, RoundShares) and begun.index in to_lose:
            to_lose.remove(begun.index)
            raise InvalidRequest("something went wrong here")

    node.before = before
    return node


def in_one_place(cohorts: list[list[int]]) -> Any:
    """The weights by plain PyTorch, on the rows of those who took part in each round."""
    layout = plans_of(mlp).layout
    weights = weights_of(mlp(), layout).astype("f8")
    for index, cohort in enumerate(cohorts, 1):
        rate = LR * (1 + math.cos(math.pi * (index - 1) / ROUNDS)) / 2
        total, mean = sum(len(rows(place)[0]) for place in cohort), np.zeros_like(weights)
        for place in cohort:
            x, y = rows(place)
            model = mlp()
            model.load_state_dict(layout.unflatten(weights.astype("f4"), torch.device("cpu")))
            order = Draws(seed_of(place), index).order(len(x), 0)
            batches = [order[start : start + BATCH] for start in range(0, len(x), BATCH)]
            plain_training(model, torch.optim.SGD(model.parameters(), lr=rate), x, y, batches)
            mean += len(x) / total * (weights_of(model, layout) - weights)
        weights = (weights + mean).astype("f4").astype("f8")
    return weights


def test_the_model_is_that_of_those_who_took_part_whoever_was_lost_and_when() -> None:
    """One of five goes at a random moment of each round and comes back in the next; some rounds are lost altogether."""
    chance, cohorts = random.Random(11), Cohorts()
    to_lose = {2, 11, 30, 44}
    nodes = [training_node(place, cohorts, to_lose) for place in range(NODES)]
    start = weights_of(mlp(), plans_of(mlp).layout)
    driver = Driver(nodes, weights=start, rounds=ROUNDS, min_nodes=3, evaluate_every=0)
    away: list[ScriptedNode] = []
    number, moment = 0, 0
    while not driver.machine.settled:
        if driver.machine.progress.number != number:
            number = driver.machine.progress.number
            moment = driver.steps + chance.randrange(1, 55)
            while away:
                driver.back(away.pop().id)
        if driver.steps == moment:
            away.append(chance.choice(nodes))
            driver.lose(away[-1].id, forget=chance.random() < 0.5)
        driver.step()
    card = driver.machine.card()
    assert (card.state, card.round) == ("done", ROUNDS), card.text
    assert not to_lose and driver.machine.rounds_lost >= 3

    places = {node.id: place for place, node in enumerate(nodes)}
    took_part = {index: sorted(places[peer] for peer in peers) for _, (index, peers) in sorted(cohorts.items())}
    assert sorted(took_part) == list(range(1, ROUNDS + 1))
    found = [took_part[index] for index in range(1, ROUNDS + 1)]
    assert [report.nodes for report in driver.reports[:ROUNDS]] == [len(cohort) for cohort in found]
    assert sum(len(cohort) < NODES for cohort in found) > 15
    assert np.allclose(driver.weights, in_one_place(found), atol=1e-5)
    assert not np.allclose(driver.weights, in_one_place([list(range(NODES))] * ROUNDS), atol=1e-3)
