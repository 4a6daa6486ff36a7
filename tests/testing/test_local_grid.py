"""A whole grid in one process: what tests and notebooks are given."""

from __future__ import annotations

import asyncio

import pandas
import pytest
import torch

import grid
from grid.errors import DatasetError, InvalidRequest, NodeUnavailable, NotFound
from grid.node.datasets import Dataset
from grid.settings import NodeSettings
from grid.testing import LocalGrid


def test_nodes_are_made_by_number_by_name_or_with_datasets() -> None:
    with LocalGrid(nodes=2) as local:
        assert list(local.client().nodes) == ["alice", "bob"]
    with LocalGrid(nodes=["north", "south"]) as local:
        assert list(local.client().nodes) == ["north", "south"]
    frame = pandas.DataFrame({"age": [20.0 + row for row in range(12)]})
    tensors = {"features": torch.ones(12, 3), "targets": torch.zeros(12), "tags": ["#ones"]}
    described = Dataset.from_frame("any", frame)
    with LocalGrid(nodes={"alice": {"people": frame, "ones": tensors}, "bob": {"same": described}}) as local:
        client = local.client()
        assert {(ds.node.name, ds.name, ds.rows) for ds in client.search()} == {
            ("alice", "people", 12),
            ("alice", "ones", 12),
            ("bob", "same", 12),
        }
        (ones,) = client.search("#ones")
        assert (ones.policy.release, ones.policy.plans, ones.policy.min_rows) == ("aggregate", "any", 10)
        assert ones.features.sum(0).get().tolist() == [12.0, 12.0, 12.0]
        with pytest.raises(grid.ReleaseDenied):
            ones.features.get()


def test_a_blocking_client_computes_at_a_node() -> None:
    with LocalGrid(nodes=1) as local:
        alice = local.client().nodes["alice"]
        x = alice.send(torch.arange(4.0))
        assert (x * 2).get().tolist() == [0.0, 2.0, 4.0, 6.0]


async def test_an_asynchronous_client_computes_at_a_node() -> None:
    async with LocalGrid(nodes=1) as local:
        client = await local.client()
        x = client.nodes["alice"].send(torch.arange(4.0))
        assert (await (x + 1).get()).tolist() == [1.0, 2.0, 3.0, 4.0]
    assert [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


def test_one_client_cannot_reach_the_values_of_another() -> None:
    with LocalGrid(nodes=1) as local:
        first, second = local.client(), local.client()
        mine = first.nodes["alice"].send(torch.ones(2))
        theirs = second.nodes["alice"].send(torch.zeros(2))
        assert (mine.get().tolist(), theirs.get().tolist()) == ([1.0, 1.0], [0.0, 0.0])
        with pytest.raises(InvalidRequest):
            mine + theirs


def test_a_node_that_is_stopped_is_gone_and_can_be_started_again() -> None:
    with LocalGrid(nodes={"alice": {"ones": {"features": torch.ones(12, 1)}}, "bob": {}}) as local:
        client = local.client()
        x = client.nodes["alice"].send(torch.ones(2))
        x.get()
        local.stop_node("alice")
        with pytest.raises(NodeUnavailable):
            x.get()
        with pytest.raises(NotFound):
            local.node("alice")
        assert client.nodes["alice"].state == "offline"
        assert client.search() == []
        local.start_node("alice")
        assert [ds.name for ds in client.search()] == ["ones"]
        assert client.nodes["alice"].send(torch.ones(2)).get().tolist() == [1.0, 1.0]


def test_what_is_no_dataset_is_refused_before_anything_starts() -> None:
    with pytest.raises(InvalidRequest, match="'numbers' must be a DataFrame"):
        LocalGrid(nodes={"alice": {"numbers": [1, 2, 3]}})
    with pytest.raises(DatasetError, match="'features'"):
        LocalGrid(nodes={"alice": {"numbers": {"targets": torch.zeros(3)}}})


def test_a_grid_that_was_not_entered_says_so() -> None:
    with pytest.raises(InvalidRequest, match="with LocalGrid"):
        LocalGrid(nodes=1).client()


def test_an_error_inside_ends_the_grid() -> None:
    with pytest.raises(KeyError), LocalGrid(nodes=1) as local:
        client = local.client()
        raise KeyError("mine")
    with pytest.raises(NodeUnavailable):
        client.search()


def test_values_in_the_middle_of_a_batch_of_commands_are_freed_as_it_runs() -> None:
    """A batch has hundreds of commands, and their values would not fit all at once."""
    with LocalGrid(nodes=1, node=NodeSettings(max_objects_per_client=8)) as local, local.client() as g:
        x = next(iter(g.nodes.values())).send(torch.ones(3))
        y = x
        for _ in range(3000):
            y = (y * 0.5) + x
        assert torch.allclose(y.get(), torch.full((3,), 2.0))
