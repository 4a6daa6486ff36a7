"""Datasets from their cards alone: columns, batches of whole blocks, splits, made-up data."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pandas
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from local_executor import LocalExecutor, Spot

from grid.client import mock as mocking
from grid.client.datasets import Dataset
from grid.client.mock import make_mock
from grid.client.tensors import RemoteTensor, adopt
from grid.errors import InvalidRequest, NotFound
from grid.mock import MAX_ROWS, first_rows
from grid.tensors.buffers import torch_dtype
from grid.wire.messages import ColumnCard, DatasetCard, PolicyCard

COLUMNS = (
    ColumnCard(name="age", kind="number", role="feature", minimum=0.0, maximum=110.0),
    ColumnCard(name="housing", kind="category", role="feature", categories=("own", "rent=2"), missing="category"),
    ColumnCard(name="pressure", kind="number", role="feature"),
    ColumnCard(name="notes", kind="text", role="other"),
    ColumnCard(name="malignant", kind="category", role="target", categories=("no", "yes")),
)


def card(rows: int = 105, min_rows: int = 10, **changes: Any) -> DatasetCard:
    policy = PolicyCard(release="aggregate", plans="any", min_rows=min_rows, max_elements=1000)
    fields: dict[str, Any] = dict(
        name="patients",
        description="Site A",
        tags=("#train",),
        rows=rows,
        columns=COLUMNS,
        policy=policy,
        feature_names=("age", "housing=own", "housing=rent=2", "housing=(missing)", "pressure"),
        feature_shape=(5,),
        feature_dtype="f4",
        target_shape=(),
        target_dtype="i8",
        classes=2,
    )
    return DatasetCard(**{**fields, **changes})


class Owner(Spot):
    """A node whose session only notes what is opened."""

    def __init__(self) -> None:
        super().__init__("alice", "id-of-alice")
        object.__setattr__(self, "outbox", LocalExecutor())
        object.__setattr__(self, "opened", [])

    def connection(self) -> Any:
        return self

    def open_dataset(
        self, dataset: str, part: str, shape: Any, dtype: str, *, column: str = "", blocks: Any = ()
    ) -> RemoteTensor:
        self.opened.append((dataset, part, tuple(shape), dtype, column, blocks))
        return adopt(self.outbox, self.outbox.new_id(), shape, torch_dtype(dtype))


@pytest.fixture
def owner() -> Owner:
    return Owner()


def test_what_the_card_says(owner: Owner) -> None:
    ds = Dataset(owner, card())
    assert (ds.name, ds.node.name, ds.rows, ds.tags) == ("patients", "alice", 105, ("#train",))
    assert (ds.description, ds.classes) == ("Site A", 2)
    assert ds.columns == ("age", "housing", "pressure", "notes", "malignant") and ds.policy.min_rows == 10
    assert "patients at alice: 105 rows" in repr(ds) and not owner.opened


def test_parts_are_opened_with_the_shape_and_dtype_of_the_card(owner: Owner) -> None:
    ds = Dataset(owner, card())
    assert (ds.features.shape, ds.targets.shape) == ((105, 5), (105,))
    assert (ds["age"].dtype, ds["housing"].dtype) == (torch.float32, torch.int64)
    assert owner.opened == [
        ("patients", "features", (105, 5), "f4", "", ()),
        ("patients", "targets", (105,), "i8", "", ()),
        ("patients", "column", (105,), "f4", "age", ()),
        ("patients", "column", (105,), "i8", "housing", ()),
    ]
    weight = ColumnCard(name="weight", kind="number", role="other", minimum=1.0, maximum=2.0)
    beside = Dataset(owner, card(columns=(*COLUMNS, weight)))  # such as an array of one number a row beside images
    assert beside["weight"].dtype == torch.float32
    assert beside.mock["weight"].between(1, 2).all() and beside.mock.features.shape == (105, 5)
    with pytest.raises(NotFound, match="'age', 'housing'"):
        ds["agee"]
    with pytest.raises(NotFound, match="text"):
        ds["notes"]
    with pytest.raises(NotFound, match="no target"):
        _ = Dataset(owner, card(target_dtype="")).targets
    with pytest.raises(NotFound, match="no target"):
        Dataset(owner, card(target_dtype="")).batches(10)


@given(rows=st.integers(1, 500), min_rows=st.integers(0, 40), batch=st.integers(1, 200), shuffle=st.booleans())
def test_batches_are_whole_blocks_and_every_block_once(rows: int, min_rows: int, batch: int, shuffle: bool) -> None:
    owner = Owner()
    batches = list(Dataset(owner, card(rows, min_rows)).batches(batch, shuffle=shuffle, seed=3))
    size, count = max(1, min_rows), max(1, rows // max(1, min_rows))
    features, targets = owner.opened[::2], owner.opened[1::2]
    assert sorted(itertools.chain.from_iterable(one[5] for one in features)) == list(range(count))
    assert sum(x.shape[0] for x, _ in batches) == rows and all(x.shape[0] == y.shape[0] for x, y in batches)
    assert [one[5] for one in features] == [one[5] for one in targets]
    assert all(len(one[5]) == max(1, batch // size) for one in features[:-1])
    if rows >= size:
        assert all(x.shape[0] >= size for x, _ in batches)


def test_shuffles_repeat_with_a_seed_and_differ_without(owner: Owner) -> None:
    ds = Dataset(owner, card(1000))

    def order(**options: Any) -> list[Any]:
        owner.opened.clear()
        list(ds.batches(10, shuffle=True, **options))
        return [one[5] for one in owner.opened[::2]]

    assert order(seed=1) == order(seed=1) != order(seed=2)
    assert order() != order()
    with pytest.raises(InvalidRequest, match="at least 1"):
        ds.batches(0)
    for wrong in (10.5, True, "10"):
        with pytest.raises(InvalidRequest, match="whole number"):
            ds.batches(wrong)


def test_split_gives_disjoint_parts_of_whole_blocks(owner: Owner) -> None:
    ds = Dataset(owner, card(105))
    train, test = ds.split([0.8, 0.2], seed=0)
    assert train.blocks is not None and test.blocks is not None
    assert sorted(train.blocks + test.blocks) == list(range(10)) and len(train.blocks) == 8
    assert train.rows + test.rows == 105 and train.features.shape[0] == train.rows
    assert sum(x.shape[0] for x, _ in test.batches(10)) == test.rows
    again = train.split([0.5, 0.5], seed=0)
    assert sorted(again[0].blocks + again[1].blocks) == sorted(train.blocks)  # type: ignore[operator]
    assert ds.split([0.8, 0.2], seed=0)[0].blocks == train.blocks
    for wrong in ([], [0.0, 1.0], [0.7, 0.7], [float("nan")], [0.01, 0.9]):
        with pytest.raises(InvalidRequest):
            ds.split(wrong)
    with pytest.raises(InvalidRequest, match="list of fractions"):
        ds.split(0.8)  # type: ignore[arg-type]


def test_mock_data_has_the_schema_and_comes_from_the_card_alone(owner: Owner) -> None:
    ds = Dataset(owner, card())
    mock = ds.mock
    assert isinstance(mock, pandas.DataFrame) and tuple(mock.columns) == ds.columns and len(mock) == 105
    assert mock.features.shape == ds.features.shape and mock.features.dtype == ds.features.dtype
    assert mock.targets.shape == ds.targets.shape and mock.targets.dtype == ds.targets.dtype
    assert set(mock["housing"]) == {"own", "rent=2"} and set(mock["malignant"]) == {"no", "yes"}
    assert mock["age"].between(0, 110).all()
    assert torch.equal(mock.features[:, 0], torch.from_numpy(mock["age"].to_numpy(copy=True)))
    assert (mock.features[:, 1:4].sum(1) == 1).all() and (mock.features[:, 3] == 0).all()
    assert mock.targets.tolist() == [int(cell == "yes") for cell in mock["malignant"]]
    assert abs(mock["pressure"].mean()) < 0.5 and 0.7 < mock["pressure"].std() < 1.3
    assert ds.mock is mock and mock.equals(make_mock(card(), 105)) and type(mock.head()) is pandas.DataFrame


def test_the_first_rows_are_those_of_the_mock_data() -> None:
    rows = first_rows(card(), columns=3, rows=5)
    mock = make_mock(card(), 105)
    assert [list(row) for row in rows] == mock.iloc[:5, :3].to_numpy(dtype=object).tolist()


def test_a_card_that_makes_no_sense_still_gives_mock_data() -> None:
    odd = (
        ColumnCard(name="turned", kind="number", role="other", minimum=5.0, maximum=1.0),
        ColumnCard(name="huge", kind="number", role="other", minimum=-1.7e308, maximum=1.7e308),
        ColumnCard(name="empty", kind="category", role="other"),
    )
    rows = first_rows(card(rows=3, columns=odd), columns=9, rows=9)
    assert len(rows) == 3
    for turned, huge, empty in rows:
        assert 1 <= float(turned) <= 5 and math.isfinite(float(huge)) and empty == ""
    assert first_rows(card(rows=0), columns=9, rows=9) == []
    assert first_rows(card(columns=()), columns=9, rows=9) == []


def test_mock_data_takes_no_more_memory_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card comes from a stranger, and honest ones may tell of large images."""
    plain: dict[str, Any] = dict(columns=(), feature_names=(), classes=0)
    for shape in [(1 << 40,), (1 << 20, 1 << 20), (-3,)]:
        with pytest.raises(InvalidRequest, match="has"):
            make_mock(card(**plain, feature_shape=shape), 5)
    monkeypatch.setattr(mocking, "MAX_CELLS", 2000)
    large = make_mock(card(**plain, feature_shape=(3, 10, 10), target_shape=(), target_dtype="f4"), 50)
    assert large.features.shape == (6, 3, 10, 10) and large.targets is not None and large.targets.shape == (6,)
    few, all_rows = make_mock(card(feature_shape=(190,), feature_names=(), target_dtype=""), 105), first_rows(card(), 3, 5)
    assert [list(row) for row in all_rows] == few.iloc[:5, :3].to_numpy(dtype=object).tolist() and len(few) == 10


def test_a_target_without_categories_still_has_mock_data() -> None:
    target = ColumnCard(name="ill", kind="category", role="target")
    plain: dict[str, Any] = dict(columns=(target,), feature_names=(), feature_shape=(2,))
    assert make_mock(card(**plain, target_dtype="i8"), 3).targets is not None


def test_mock_data_of_other_forms() -> None:
    images = card(5000, columns=(), feature_names=(), feature_shape=(1, 8, 8), feature_dtype="f8", classes=10)
    mock = make_mock(images, 5000)
    assert mock.features.shape == (MAX_ROWS, 1, 8, 8) and mock.features.dtype is torch.float64
    assert mock.targets is not None and set(mock.targets.tolist()) == set(range(10))
    plain: dict[str, Any] = dict(columns=(), feature_names=(), feature_shape=(4,), feature_dtype="i8")
    tokens = make_mock(card(**plain, target_dtype="f4", classes=0), 20)
    pixels = make_mock(card(**{**plain, "feature_dtype": "u1", "feature_shape": (1, 8, 8)}), 20)
    assert pixels.features.dtype is torch.uint8 and pixels.features.float().std() > 50
    assert tokens.features.dtype is torch.int64 and tokens.targets is not None and tokens.targets.dtype is torch.float32
    assert make_mock(card(target_dtype=""), 5).targets is None
    with pytest.raises(InvalidRequest, match="none of its columns"):
        make_mock(card(feature_names=("age", "x=y", "b", "c", "d")), 5)
