"""What a node remembers of its datasets: secret blocks, the partition of all releases, growth, and restarts."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from node_mesh import CLOCK, client, dataset, mesh

from grid.errors import BudgetExhausted, DatasetError, ReleaseDenied
from grid.node.custody import Custody, meet
from grid.node.datasets import Dataset
from grid.settings import NodeSettings
from grid.store.base import DatasetState, Store
from grid.store.memory import MemoryStore
from grid.store.sqlite import SqliteStore


def sizes(cut: numpy.ndarray) -> list[int]:  # type: ignore[type-arg]
    return numpy.bincount(cut).tolist()


def released(store: Store, name: str = "d") -> None:
    """As if the sum over all rows had been released."""
    state = store.load(name)
    assert state is not None
    ones = numpy.ones(state.rows, dtype="<i4").tobytes()
    store.save(name, DatasetState(state.rows, state.min_rows, state.blocks, ones, 3))


def test_a_dataset_is_cut_once_into_blocks_of_min_rows_in_a_secret_order() -> None:
    store = MemoryStore()
    _, cut = meet(dataset(47), store)
    assert sizes(cut) == [10, 10, 10, 17]
    assert numpy.array_equal(meet(dataset(47), store)[1], cut)
    assert not numpy.array_equal(meet(dataset(47), MemoryStore())[1], cut)
    assert cut.tolist() != sorted(cut.tolist())


def test_an_unreleased_dataset_may_change_as_it_likes() -> None:
    store = MemoryStore()
    meet(dataset(47), store)
    for rows in (30, 60):
        same, cut = meet(dataset(rows), store)
        assert same.rows == rows and len(cut) == rows


def test_new_rows_come_into_use_in_whole_blocks_and_old_blocks_stay() -> None:
    store = MemoryStore()
    _, before = meet(dataset(47), store)
    released(store)
    same, cut = meet(dataset(56), store)
    assert same.rows == 47 and numpy.array_equal(cut, before)
    grown, cut = meet(dataset(69), store)
    assert grown.rows == 67 and sizes(cut) == [10, 10, 10, 10, 10, 17]
    for block in range(4):
        rows = numpy.flatnonzero(before == block)
        assert len(set(cut[rows].tolist())) == 1 and (cut == cut[rows[0]]).sum() == len(rows)
    state = store.load("d")
    assert state is not None and state.elements == 3
    assert numpy.frombuffer(state.partition, dtype="<i4").tolist() == [1] * 47 + [0] * 20


def test_a_dataset_that_has_shrunk_after_a_release_is_refused() -> None:
    store = MemoryStore()
    meet(dataset(47), store)
    released(store)
    with pytest.raises(DatasetError, match="new name"):
        meet(dataset(46), store)


def test_another_min_rows_makes_new_blocks_and_forgets_no_release() -> None:
    store = MemoryStore()
    meet(dataset(47), store)
    released(store)
    _, cut = meet(dataset(47, min_rows=20), store)
    assert sizes(cut) == [20, 27]
    state = store.load("d")
    assert state is not None and state.min_rows == 20 and state.partition and state.elements == 3


def test_a_dataset_smaller_than_a_block_is_one_block() -> None:
    _, cut = meet(dataset(5, release="open"), MemoryStore())
    assert sizes(cut) == [5]


def test_cards_tell_the_rows_in_use() -> None:
    store = MemoryStore()
    meet(dataset(47), store)
    released(store)
    custody = Custody([dataset(50)], store=store, settings=NodeSettings(), dev=False, clock=CLOCK)
    (card,) = custody.cards()
    assert card.rows == 47 and custody.datasets["d"].rows == 47 and custody.smallest_cohort == 3
    assert Custody([], store=store, settings=NodeSettings(), dev=True, clock=CLOCK).smallest_cohort == 2


async def test_a_restarted_node_remembers_what_it_released(tmp_path: Path) -> None:
    owned = dataset(40, max_elements=6)
    for attempt in range(3):
        store = SqliteStore(tmp_path / "node.sqlite")
        async with mesh({"alice": [owned]}, stores={"alice": store}) as made, client(made, "alice") as raw:
            (total, shifted) = await raw.remote(lambda x: (x[:20].sum(0), x[5:25].sum(0)), await raw.open())
            if attempt:
                with pytest.raises(ReleaseDenied) as caught:
                    await raw.get(shifted)
                assert caught.value.details["rule"] == "partition"
            if attempt < 2:
                await raw.get(total)
            else:
                with pytest.raises(BudgetExhausted):
                    await raw.get(total)
        store.close()


async def test_rows_added_after_a_release_cannot_be_singled_out(tmp_path: Path) -> None:
    features = torch.randn(45, 2)
    store = MemoryStore()
    for rows in (40, 45):
        owned = Dataset.from_tensors("d", {"features": features[:rows]})
        async with mesh({"alice": [owned]}, stores={"alice": store}) as made, client(made, "alice") as raw:
            (total,) = await raw.remote(lambda x: x.sum(0), await raw.open())
            torch.testing.assert_close(await raw.get(total), features[:40].sum(0))


@pytest.mark.parametrize("dev", [True, False])
def test_without_a_word_of_the_owner_nobody_is_trusted_with_shares_in_a_grid_with_a_root(dev: bool) -> None:
    custody = Custody([dataset(40)], store=MemoryStore(), settings=NodeSettings(), dev=dev, clock=CLOCK)
    (card,) = custody.cards()
    assert card.policy.parties == (("*",) if dev else ())
    assert custody.gate._dev is dev
