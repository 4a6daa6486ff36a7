"""The workloads of the federated benchmarks are what they say."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import grid
from benchmarks import federated_rows, federated_simulated


def test_a_simulated_round_sums_exactly_and_accounts_for_all_legs() -> None:
    line = federated_simulated.simulate(5, 1000, 1)
    assert line["max_abs_error"] < 1e-6
    assert set(line["node_seconds"]) == {"all", "keys", "share", "encode", "masked", "consent", "reveal"}
    assert line["node_bytes_sent"] > 4000 and line["gateway_bytes_received"] > 4 * 4000


def test_the_rounds_that_rows_are_laid_beside_are_plain_averages() -> None:
    local = grid.Local(max_steps=1, batch_size=federated_rows.ROWS, optimizer=grid.SGD(lr=5.0))
    weight = federated_rows.Wide(100).weight.detach().double()
    rows = [tuple(map(torch.from_numpy, federated_rows.rows_of(number))) for number in range(3)]
    for _ in range(2):
        weight.requires_grad_()
        losses = [nn.functional.mse_loss(x[:, 0].double() * weight.mean(), y.double()) for x, y in rows]
        (gradient,) = torch.autograd.grad(sum(losses) / 3, weight)
        weight = (weight - 5.0 * gradient).detach()
    found = federated_rows.exactly(100, 3, 2, local)
    assert found.dtype == np.float32 and np.abs(found - weight.numpy()).max() < 1e-6
