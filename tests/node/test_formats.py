"""One table or set of arrays gives the same dataset, whichever kind of file it is in, and hostile files are refused."""

from __future__ import annotations

import io
import logging
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
import pandas
import pyarrow
import pyarrow.parquet
import pytest
import safetensors.torch
import torch

import grid.node.csv_table
import grid.node.readers
from grid.errors import DatasetError
from grid.node.datasets import Dataset

ROWS = 57

TABLE_TOML = """description = "People"
file = "people.{kind}"
tags = ["#people"]
target = "sick"
[policy]
release = "aggregate"
plans = "any"
min_rows = 2
[columns.age]
min = 0
max = 110
missing = "mean-of-bounds"
[columns.housing]
categories = ["own", "rent", "none"]
missing = "category"
[columns.floor]
categories = [0, 1, 2]
[columns.sick]
categories = ["no", "yes"]
"""


def people(rows: int = ROWS) -> pandas.DataFrame:
    """Every kind of column: bounds and missing cells, categories of texts and of numbers, plain numbers, truths, text."""
    at = numpy.arange(rows)
    return pandas.DataFrame(
        {
            "age": [None if row % 7 == 3 else float(row % 90) for row in at],
            "housing": [None if row % 11 == 5 else ("own", "rent", "none")[row % 3] for row in at],
            "income": at * 0.25 - 3,
            "floor": at % 3,
            "insured": at % 2 == 0,
            "count": at * 1000,
            "note": [f"note {row}" for row in at],
            "sick": [("no", "yes")[row // 5 % 2] for row in at],
        }
    )


def csv(table: pandas.DataFrame, path: Path) -> None:
    table.to_csv(path, index=False)


def parquet(table: pandas.DataFrame, path: Path) -> None:
    table.to_parquet(path, row_group_size=10)


def parquet_of_dictionaries(table: pandas.DataFrame, path: Path) -> None:
    """Other widths and encodings of the same values."""
    arrow = pyarrow.table(
        {
            "age": pyarrow.array(table["age"], type=pyarrow.float32(), from_pandas=True),
            "housing": pyarrow.array(table["housing"], from_pandas=True).dictionary_encode(),
            "income": pyarrow.array(table["income"]).cast(pyarrow.decimal128(10, 2)),
            "floor": pyarrow.array(table["floor"], type=pyarrow.int8()).dictionary_encode(),
            "insured": pyarrow.array(table["insured"]),
            "count": pyarrow.array(table["count"], type=pyarrow.uint64()),
            "note": pyarrow.array(table["note"], type=pyarrow.large_string()),
            "sick": pyarrow.array(table["sick"]).dictionary_encode(),
        }
    )
    pyarrow.parquet.write_table(arrow, path, row_group_size=7, compression="zstd")


TABLES: Mapping[str, tuple[str, Callable[[pandas.DataFrame, Path], None]]] = {
    "csv": ("csv", csv),
    "parquet": ("parquet", parquet),
    "parquet of dictionaries": ("parquet", parquet_of_dictionaries),
}


def load(folder: Path, kind: str, write: Callable[[Any, Path], None], table: Any, toml: str = TABLE_TOML) -> Dataset:
    write(table, folder / f"people.{kind}")
    path = folder / "people.toml"
    path.write_text(toml.replace("{kind}", kind))
    return Dataset.from_file(path)


def assert_same(one: Dataset, other: Dataset) -> None:
    assert one.card() == other.card()
    assert torch.equal(one.features, other.features)
    assert (one.targets is None) == (other.targets is None)
    if one.targets is not None and other.targets is not None:
        assert torch.equal(one.targets, other.targets)
    assert list(one.values) == list(other.values)
    for name in one.values:
        assert torch.equal(one.values[name], other.values[name]), name


@pytest.fixture(params=["large blocks", "small blocks"])
def block_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few rows give the same as one block."""
    if request.param == "small blocks":
        monkeypatch.setattr(grid.node.readers, "BLOCK_BYTES", 200)
        monkeypatch.setattr(grid.node.csv_table, "CHUNK_CELLS", 30)


@pytest.mark.usefixtures("block_size")
class TestTables:
    """The conformance suite of tables."""

    @pytest.mark.parametrize("case", TABLES)
    def test_the_same_table_is_the_same_dataset(self, case: str, tmp_path: Path) -> None:
        table = people()
        expected = Dataset.from_frame(
            "people",
            table,
            description="People",
            tags=["#people"],
            target="sick",
            columns={
                "age": {"min": 0, "max": 110, "missing": "mean-of-bounds"},
                "housing": {"categories": ["own", "rent", "none"], "missing": "category"},
                "floor": {"categories": [0, 1, 2]},
                "sick": {"categories": ["no", "yes"]},
            },
            policy={"release": "aggregate", "plans": "any", "min_rows": 2},
        )
        found = load(tmp_path, *TABLES[case], table)
        assert found.feature_names == (
            *("age", "housing=own", "housing=rent", "housing=none", "housing=(missing)", "income"),
            *("floor=0", "floor=1", "floor=2", "insured", "count"),
        )
        assert found.features[3].tolist() == [55, 1, 0, 0, 0, -2.25, 1, 0, 0, 0, 3000]
        assert found.features[5, 1:5].tolist() == [0, 0, 0, 1]
        assert found.targets is not None and found.targets.tolist() == [row // 5 % 2 for row in range(ROWS)]
        assert_same(found, expected)

    @pytest.mark.parametrize("case", TABLES)
    @pytest.mark.parametrize(
        ("column", "value", "what"),
        [
            ("age", 111.0, "column 'age' holds a value beyond its declared 'max'"),
            ("housing", "castle", "column 'housing' holds a category that is not declared"),
            ("income", None, "column 'income' has no value"),
            ("sick", None, "column 'sick' has no value"),
            ("income", 9e50, "column 'income' holds a number that is not finite in float32"),
        ],
    )
    def test_a_wrong_cell_is_named_by_its_row(self, case: str, column: str, value: Any, what: str, tmp_path: Path) -> None:
        if case == "parquet of dictionaries" and value == 9e50:
            pytest.skip("its decimals are no longer than that")
        table = people()
        table.loc[44, column] = value
        with pytest.raises(DatasetError) as caught:
            load(tmp_path, *TABLES[case], table)
        place = "line 46" if case == "csv" else "row 44"
        assert f"people.{TABLES[case][0]}, {place}: {what}" in caught.value.message
        assert str(value) not in caught.value.message.replace("None", "") or value is None

    @pytest.mark.parametrize("case", TABLES)
    def test_no_rows_and_missing_columns_are_refused(self, case: str, tmp_path: Path) -> None:
        with pytest.raises(DatasetError, match="no rows"):
            load(tmp_path, *TABLES[case], people()[:0])
        with pytest.raises(DatasetError, match="no column 'weight'"):
            load(tmp_path, *TABLES[case], people(), TABLE_TOML + "[columns.weight]\nmin = 0\n")

    @pytest.mark.parametrize("case", TABLES)
    def test_undeclared_text_is_told_by_all_its_cells(self, case: str, tmp_path: Path) -> None:
        """Where the first block holds numbers, a later one decides."""
        table = people()
        table["note"] = [str(row) if row < 20 else f"text {row}" for row in range(ROWS)]
        assert "note" not in load(tmp_path, *TABLES[case], table).values
        table["note"] = [str(row) if row < 40 else f"text {row}" for row in range(ROWS)]
        with pytest.raises(DatasetError, match="'note' holds something that is not a number"):
            load(tmp_path, *TABLES[case], table)


def parquet_error(folder: Path, table: pyarrow.Table, toml: str = 'file = "people.parquet"\n') -> str:
    with pytest.raises(DatasetError) as caught:
        load(folder, "parquet", lambda rows, path: pyarrow.parquet.write_table(rows, path), table, toml)
    return caught.value.message


def test_parquet_columns_that_are_no_features_are_left_out_and_said_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = pyarrow.table(
        {
            "x": [1.0, 2.0],
            "born": pyarrow.array([0, 1], type=pyarrow.timestamp("s")),
            "history": [[1, 2], [3]],
            "scan": [b"a", b"b"],
            "nothing": pyarrow.nulls(2),
            "__index_level_0__": [7, 8],
        }
    )
    with caplog.at_level(logging.WARNING):
        toml = 'file = "people.parquet"\n[columns.nothing]\ncategories = ["a", "b"]\nmissing = "category"\n'
        dataset = load(tmp_path, "parquet", lambda rows, path: pyarrow.parquet.write_table(rows, path), table, toml)
    assert dataset.feature_names == ("x", "nothing=a", "nothing=b", "nothing=(missing)")
    assert dataset.features.tolist() == [[1, 0, 0, 1], [2, 0, 0, 1]]
    assert [column.name for column in dataset.columns] == ["x", "born", "history", "scan", "nothing"]
    for part in ("'born' holds dates", "'history' holds lists", "'scan' holds binary", "'__index_level_0__' is the index"):
        assert part in caplog.text
    assert "'born' holds dates" in parquet_error(tmp_path, table, 'file = "people.parquet"\n[columns.born]\nmin = 0\n')
    assert "'history' holds lists" in parquet_error(tmp_path, table, 'file = "people.parquet"\ntarget = "history"\n')


def test_a_damaged_parquet_file_is_an_error(tmp_path: Path) -> None:
    people(1000).to_parquet(tmp_path / "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()
    (tmp_path / "people.toml").write_text(TABLE_TOML.replace("{kind}", "parquet"))
    for damaged in (b"PAR1", whole[:100], whole[:-20], bytes(len(whole)), whole[:200] + bytes(4000) + whole[4200:]):
        (tmp_path / "people.parquet").write_bytes(damaged)
        with pytest.raises(DatasetError, match=r"people\.parquet: cannot be read"):
            Dataset.from_file(tmp_path / "people.toml")


# ------------------------------------------------------------ arrays

Arrays = Mapping[str, torch.Tensor]

ARRAY_TOML = """file = "people.{kind}"
[policy]
release = "open"
[columns.targets]
categories = [0, 1, 2]
[columns.x1]
min = -10
max = 10
[columns.site]
categories = [4, 7]
"""


def arrays(rows: int = ROWS) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "features": torch.randn(rows, 5, generator=generator, dtype=torch.float64),
        "targets": torch.arange(rows) % 3,
        "site": torch.tensor([4, 7])[torch.arange(rows) % 2],
        "weight": torch.rand(rows, generator=generator),
        "spare": torch.zeros(3, 3),
    }


def npz(parts: Arrays, path: Path) -> None:
    numpy.savez(path, **{name: part.numpy() for name, part in parts.items()})


def npz_compressed(parts: Arrays, path: Path) -> None:
    numpy.savez_compressed(path, **{name: part.numpy() for name, part in parts.items()})


def npz_by_columns(parts: Arrays, path: Path) -> None:
    numpy.savez(path, **{name: part.numpy().copy(order="F") for name, part in parts.items()})


def tensors(parts: Arrays, path: Path) -> None:
    safetensors.torch.save_file(dict(parts), path)


ARRAYS: Mapping[str, tuple[str, Callable[[Arrays, Path], None]]] = {
    "npz": ("npz", npz),
    "npz, compressed": ("npz", npz_compressed),
    "npz, by columns": ("npz", npz_by_columns),
    "safetensors": ("safetensors", tensors),
}


@pytest.mark.usefixtures("block_size")
@pytest.mark.parametrize("case", ARRAYS)
class TestArrays:
    """The conformance suite of files of arrays."""

    def test_the_same_arrays_are_the_same_dataset(self, case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        parts = arrays()
        with caplog.at_level(logging.WARNING):
            found = load(tmp_path, *ARRAYS[case], parts, ARRAY_TOML)
        assert "'spare'" in caplog.text
        assert found.features.dtype == torch.float32 and torch.equal(found.features, parts["features"].float())
        assert found.targets is not None and torch.equal(found.targets, parts["targets"]) and found.classes == 3
        assert found.feature_names == ("x0", "x1", "x2", "x3", "x4")
        assert torch.equal(found.part("column", "x1"), found.features[:, 1])
        assert found.part("column", "site").tolist() == [row % 2 for row in range(ROWS)]
        assert torch.equal(found.part("column", "weight"), parts["weight"])
        roles = {column.name: (column.kind, column.role) for column in found.columns}
        assert roles["site"] == ("category", "other") and roles["weight"] == ("number", "other")
        assert roles["targets"] == ("category", "target") and roles["x1"] == ("number", "feature")

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float16, torch.float32, torch.bool])
    def test_images_and_other_numbers_keep_their_form(self, case: str, dtype: torch.dtype, tmp_path: Path) -> None:
        images = torch.arange(ROWS * 12).reshape(ROWS, 1, 4, 3).to(dtype)
        labels = (torch.arange(ROWS) % 10).to(torch.uint8)
        toml = 'file = "people.{kind}"\nfeatures = "x_train"\ntargets = "y_train"\n[policy]\nrelease = "open"\n'
        found = load(tmp_path, *ARRAYS[case], {"x_train": images, "y_train": labels}, toml)
        assert torch.equal(found.features, images) and found.features.dtype == dtype
        assert found.targets is not None and found.targets.dtype == torch.int64 and torch.equal(found.targets, labels.long())
        assert found.card().feature_shape == (1, 4, 3) and found.feature_names == ()

    def test_what_is_wrong_is_named(self, case: str, tmp_path: Path) -> None:
        kind, write = ARRAYS[case]

        def error(toml: str = ARRAY_TOML, **changes: torch.Tensor) -> str:
            with pytest.raises(DatasetError) as caught:
                load(tmp_path, kind, write, {**arrays(), **changes}, toml)
            return caught.value.message

        low = arrays()["features"]
        low[40, 1] = -11
        assert "row 40: column 'x1' holds a value beyond its declared 'min'" in error(features=low)
        low[40, 1] = torch.nan
        assert "row 40: array 'features' holds a number that is missing or not finite" in error(features=low)
        assert "row 5: column 'targets' holds a category" in error(targets=torch.arange(ROWS) % 3 + (torch.arange(ROWS) == 5) * 7)
        assert f"56 rows in 'targets', and {ROWS} in 'features'" in error(targets=torch.zeros(56, dtype=torch.int64))
        assert "has no rows" in error(features=torch.zeros(0, 3))
        assert "has no rows" in error(features=torch.tensor(3.0))
        assert "(20, 0): there is nothing in its rows" in error(features=torch.zeros(20, 0))
        assert "(20, 3, 0): there is nothing" in error(targets=torch.zeros(20, 3, 0))
        assert "no column 'height'" in error(ARRAY_TOML + "[columns.height]\nmin = 0\n")
        assert "has no array 'x'" in error('file = "people.{kind}"\nfeatures = "x"\n')
        assert "names a column of a table" in error('file = "people.{kind}"\ntarget = "targets"\n')
        assert "rename it" in error(x3=torch.zeros(ROWS))
        assert "no categories" in error(ARRAY_TOML.replace("min = -10\nmax = 10", "categories = [1, 2]"))

    def test_a_damaged_file_is_an_error(self, case: str, tmp_path: Path) -> None:
        kind, write = ARRAYS[case]
        load(tmp_path, kind, write, arrays(), ARRAY_TOML)
        path = tmp_path / f"people.{kind}"
        whole = path.read_bytes()
        for damaged in (b"x", whole[: len(whole) // 2], whole[:-1], bytes(len(whole)), b"\xff" * 100):
            path.write_bytes(damaged)
            with pytest.raises(DatasetError, match=r"people\."):
                Dataset.from_file(tmp_path / "people.toml")


class _Bomb:
    """What would run if anything here were unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a data file was unpickled",)


def npz_member(path: Path, data: bytes, name: str = "features.npy") -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, data)


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


HOSTILE_NPZ = {
    "an array of objects": (
        lambda: npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", pickle.dumps([_Bomb()])),
        "Python objects",
    ),
    "a pickle in place of an array": (lambda: pickle.dumps(_Bomb()), "damaged header"),
    "more rows than there are": (
        lambda: npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}", bytes(40)),
        "longer or shorter",
    ),
    "a negative length": (
        lambda: npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -2)}", bytes(16)),
        "longer or shorter",
    ),
    "records": (
        lambda: npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (4,)}", bytes(16)),
        "nothing is computed",
    ),
    "texts": (lambda: npy("{'descr': '<U4', 'fortran_order': False, 'shape': (4,)}", bytes(64)), "nothing is computed"),
    "big-endian": (lambda: npy("{'descr': '>f4', 'fortran_order': False, 'shape': (4,)}", bytes(16)), "big-endian"),
    "a header that is code": (lambda: npy("__import__('pytest').fail('evaluated')"), "damaged header"),
    "a header that nests": (lambda: npy("(" * 9000), "damaged header"),
}


@pytest.mark.parametrize("case", HOSTILE_NPZ)
def test_hostile_npz_files_are_refused(case: str, tmp_path: Path) -> None:
    make, what = HOSTILE_NPZ[case]
    npz_member(tmp_path / "people.npz", make())
    (tmp_path / "people.toml").write_text('file = "people.npz"\n')
    with pytest.raises(DatasetError, match=what):
        Dataset.from_file(tmp_path / "people.toml")


def test_an_npz_file_that_saves_objects_is_not_unpickled(tmp_path: Path) -> None:
    held = io.BytesIO()
    numpy.savez(held, features=numpy.array([_Bomb()], dtype=object))
    (tmp_path / "people.npz").write_bytes(held.getvalue())
    (tmp_path / "people.toml").write_text('file = "people.npz"\n')
    with pytest.raises(DatasetError, match="never unpickled"):
        Dataset.from_file(tmp_path / "people.toml")
