"""Datasets from files and memory: what they become, and errors that name file, line or column and never a value."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas
import pytest
import torch

from grid.errors import DatasetError, NotFound
from grid.node.datasets import Dataset, load_datasets

HEADER = "age,housing,income,note,sick\n"
ROWS = [
    "30,own,1.5,hello,no\n",
    "40,rent,2.5,you,yes\n",
    "50,none,-1,there,no\n",
]
TOML = """description = "People"
file = "people.csv"
tags = ["#people", "#train"]
target = "sick"
[policy]
release = "aggregate"
plans = "any"
min_rows = 2
[columns.age]
min = 0
max = 110
[columns.housing]
categories = ["own", "rent", "none"]
[columns.sick]
categories = ["no", "yes"]
"""


def write(folder: Path, csv: str = HEADER + "".join(ROWS), toml: str = TOML) -> Path:
    (folder / "people.csv").write_bytes(csv.encode())
    path = folder / "people.toml"
    path.write_text(toml)
    return path


def error_of(folder: Path, csv: str = HEADER + "".join(ROWS), toml: str = TOML) -> str:
    with pytest.raises(DatasetError) as caught:
        Dataset.from_file(write(folder, csv, toml))
    return caught.value.message


def test_a_file_becomes_features_targets_and_columns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        dataset = Dataset.from_file(write(tmp_path))
    assert dataset.name == "people" and dataset.rows == 3 and dataset.tags == ("#people", "#train")
    assert dataset.feature_names == ("age", "housing=own", "housing=rent", "housing=none", "income")
    assert dataset.features.dtype == torch.float32
    assert dataset.features.tolist() == [[30, 1, 0, 0, 1.5], [40, 0, 1, 0, 2.5], [50, 0, 0, 1, -1]]
    assert dataset.targets is not None and dataset.targets.dtype == torch.int64 and dataset.targets.tolist() == [0, 1, 0]
    assert dataset.part("column", "housing").tolist() == [0, 1, 2]
    assert dataset.part("column", "age").tolist() == [30, 40, 50]
    assert "note" in caplog.text and "text without declared categories" in caplog.text and "hello" not in caplog.text
    for part, column in (("column", "note"), ("column", "nope"), ("rows", "")):
        with pytest.raises(NotFound):
            dataset.part(part, column)


def test_the_card_holds_only_what_the_owner_wrote_and_the_number_of_rows(tmp_path: Path) -> None:
    card = Dataset.from_file(write(tmp_path)).card()
    assert (card.name, card.description, card.rows, card.classes) == ("people", "People", 3, 2)
    assert (card.feature_shape, card.feature_dtype, card.target_shape, card.target_dtype) == ((5,), "f4", (), "i8")
    columns = {column.name: column for column in card.columns}
    assert list(columns) == ["age", "housing", "income", "note", "sick"]
    assert (columns["age"].minimum, columns["age"].maximum, columns["age"].role) == (0.0, 110.0, "feature")
    assert (columns["income"].minimum, columns["income"].maximum) == (None, None)
    assert columns["housing"].categories == ("own", "rent", "none") and columns["housing"].kind == "category"
    assert (columns["note"].kind, columns["note"].role) == ("text", "other")
    assert columns["sick"].role == "target"
    assert card.policy.release == "aggregate" and card.policy.min_rows == 2
    other = Dataset.from_file(write(tmp_path, HEADER + "1,own,7,x,yes\n2,own,8,y,yes\n3,own,9,z,yes\n")).card()
    assert other == card


def test_a_number_is_a_target_too(tmp_path: Path) -> None:
    toml = TOML.replace('target = "sick"', 'target = "income"')
    dataset = Dataset.from_file(write(tmp_path, toml=toml))
    assert dataset.targets is not None and dataset.targets.dtype == torch.float32
    assert dataset.targets.tolist() == [1.5, 2.5, -1.0] and dataset.classes == 0
    assert "income" not in dataset.feature_names and "sick=yes" in dataset.feature_names


def test_whole_numbers_are_categories_as_they_are_written(tmp_path: Path) -> None:
    csv = "x,label\n1,0\n2,1\n"
    toml = 'file = "people.csv"\ntarget = "label"\n[columns.label]\ncategories = [0, 1]\n'
    dataset = Dataset.from_file(write(tmp_path, csv, toml))
    assert dataset.targets is not None and dataset.targets.tolist() == [0, 1]
    assert dataset.policy.release == "deny"  # the default on disk


def test_missing_values_follow_the_declared_rule(tmp_path: Path) -> None:
    csv = "age,housing\n,own\n40,\nNA,rent\n"
    toml = (
        'file = "people.csv"\n[columns.age]\nmin = 10\nmax = 30.0\nmissing = "mean-of-bounds"\n'
        '[columns.housing]\ncategories = ["own", "rent"]\nmissing = "category"\n'
    )
    dataset = Dataset.from_file(write(tmp_path, csv.replace("40", "25"), toml))
    assert dataset.feature_names == ("age", "housing=own", "housing=rent", "housing=(missing)")
    assert dataset.features.tolist() == [[20, 1, 0, 0], [25, 0, 0, 1], [20, 0, 1, 0]]


def test_quoted_cells_spaces_blank_lines_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    csv = '\ufeffage, housing ,sick,note\r\n\r\n 30, "own",no,"two\r\nlines"\r\n40,rent,yes,"a ""b"", c"\r\n\r\n50, none,no,\r\n'
    dataset = Dataset.from_file(write(tmp_path, csv))
    assert dataset.features[:, 0].tolist() == [30, 40, 50]
    assert dataset.part("column", "housing").tolist() == [0, 1, 2]


LATE = '"two\nlines"'

CELLS = {
    "not a number": (HEADER + ROWS[0] + "4x,rent,2,z,yes\n" + ROWS[2], ["people.csv, line 3", "'age'", "not a number"]),
    "not a number, undeclared": (HEADER + ROWS[0] + ROWS[1] + "50,own,oops,z,no\n", ["line 4", "'income'", "not a number"]),
    "below min": (HEADER + ROWS[0] + "-4,rent,2,z,yes\n", ["line 3", "'age'", "'min'"]),
    "above max": (HEADER + "444,rent,2,z,yes\n" + ROWS[0], ["line 2", "'age'", "'max'"]),
    "unknown category": (HEADER + ROWS[0] + "4,castle,2,z,yes\n", ["line 3", "'housing'", "not declared"]),
    "unknown target": (HEADER + ROWS[0] + "4,own,2,z,maybe\n", ["line 3", "'sick'", "not declared"]),
    "missing number": (HEADER + ROWS[0] + ",own,2,z,yes\n", ["line 3", "'age'", "no value", "mean-of-bounds"]),
    "missing category": (HEADER + ROWS[0] + "4,,2,z,yes\n", ["line 3", "'housing'", "no value", '"category"']),
    "infinite": (HEADER + ROWS[0] + "4,own,inf,z,yes\n", ["line 3", "'income'", "not finite"]),
    "too large for float32": (HEADER + ROWS[0] + "4,own,1e39,z,yes\n", ["line 3", "'income'", "not finite"]),
    "after a row of two lines": (HEADER + f"30,own,1,{LATE},no\n4,castle,2,z,yes\n", ["line 4", "'housing'"]),
    "after blank lines": (HEADER + "\n\n" + ROWS[0] + "4,castle,2,z,yes\n", ["line 5", "'housing'"]),
    "too few cells": (HEADER + ROWS[0] + "4,own,2\n", ["line 3", "3 cells", "5"]),
    "too many cells": (HEADER + ROWS[0] + "4,own,2,z,yes,more\n", ["line 3", "6 cells", "5"]),
    "every row too long": (HEADER + "1,own,2,z,yes,\n" * 3, ["line 2", "6 cells"]),
    "open quote": (HEADER + ROWS[0] + '4,own,2,"z,yes\n', ["line 3", "not valid CSV"]),
    "two columns of a name": ("age,age,sick\n1,2,no\n", ["line 1", "two columns 'age'"]),
    "a column without a name": ("age,,sick\n1,2,no\n", ["line 1", "column 2 has no name"]),
    "an empty file": ("", ["people.csv", "empty"]),
    "a file of blank lines": ("\n\n", ["people.csv", "empty"]),
    "no rows": (HEADER, ["people.csv", "no rows"]),
    "a declared column is not there": ("age,housing,income\n1,own,2\n2,own,3\n", ["people.toml", "line 14", "'sick'"]),
}


@pytest.mark.parametrize("case", CELLS)
def test_wrong_cells_are_named_by_line_and_column_and_never_shown(tmp_path: Path, case: str) -> None:
    csv, parts = CELLS[case]
    message = error_of(tmp_path, csv)
    for part in parts:
        assert part in message
    for secret in ("4x", "oops", "444", "castle", "maybe", "1e39", "inf"):
        assert secret not in message.replace("infinite", "").replace("finite", "")


def test_text_that_is_not_utf8_is_named_by_line(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "people.csv").write_bytes(HEADER.encode() + b"30,own,1,caf\xe9,no\n")
    with pytest.raises(DatasetError, match=r"line 2: not UTF-8"):
        Dataset.from_file(path)


DESCRIPTIONS = {
    "bad TOML": ("file = \n", ["people.toml", "line 1"]),
    "no file key": ("tags = []\n", ["'file' is missing"]),
    "no such file": ('file = "nothing.csv"\n', ["line 1", "no file", "nothing.csv"]),
    "another kind of file": ('file = "people.xlsx"\n', ["line 1", ".csv", ".parquet", ".npz", ".safetensors"]),
    "an array of a table": ('file = "people.csv"\nfeatures = "x"\n', ["line 2", "'features'", "names an array"]),
    "the form of images of a table": ('file = "people.csv"\n[image]\nsize = [2, 2]\n', ["line 2", "folders of images"]),
    "unknown key": (TOML.replace("description", "descripton"), ["line 1", "'descripton'", "did you mean 'description'?"]),
    "unknown key in the policy": (TOML.replace("release", "relase"), ["line 6", "'relase'", "[policy]", "'release'"]),
    "unknown key in a column": (TOML.replace("max =", "maximum ="), ["line 11", "[columns.age]", "'maximum'"]),
    "tags that are no list": (TOML.replace('["#people", "#train"]', '"#people"'), ["line 3", "'tags'"]),
    "a tag that is no text": (TOML.replace('"#train"', "7"), ["line 3", "'tags'"]),
    "a description that is no text": (TOML.replace('"People"', "7"), ["line 1", "'description'"]),
    "a policy that is no table": (TOML.split("[policy]")[0] + "policy = 3\n", ["line 5", "'policy'", "table"]),
    "a bound that is no number": (TOML.replace("min = 0", 'min = "0"'), ["line 10", "'min'"]),
    "a bound that is not finite": (TOML.replace("max = 110", "max = inf"), ["line 11", "'max'"]),
    "min above max": (TOML.replace("min = 0", "min = 200"), ["line 10", "less than"]),
    "categories of one": (TOML.replace('["no", "yes"]', '["no"]'), ["line 15", "'categories'"]),
    "a category twice": (TOML.replace('["no", "yes"]', '["no", "no"]'), ["line 15", "twice"]),
    "categories and bounds": (TOML.replace("min = 0", 'categories = ["a", "b"]'), ["line 10", "either"]),
    "an unknown missing rule": (TOML.replace("min = 0", 'missing = "drop"'), ["line 10", "'missing'"]),
    "mean of no bounds": (TOML.replace("min = 0", 'missing = "mean-of-bounds"'), ["line 10", "needs"]),
    "missing category of a number": (TOML.replace("min = 0", 'missing = "category"'), ["line 10", "needs 'categories'"]),
    "a missing target": (TOML + 'missing = "category"\n', ["line 16", "target"]),
    "a target that is not there": (TOML.replace('target = "sick"', 'target = "ill"'), ["line 4", "'ill'"]),
    "a target of text": (TOML.split("[columns.sick]")[0], ["line 4", "declare its categories"]),
    "too few rows": (TOML.replace("min_rows = 2", "min_rows = 4"), ["line 8", "3 rows are too few"]),
    "a release mode that is none": (TOML.replace('"aggregate"', '"sometimes"'), ["line 6", "release"]),
    "min_rows that is no number": (TOML.replace("min_rows = 2", 'min_rows = "two"'), ["line 8", "min_rows"]),
}


@pytest.mark.parametrize("case", DESCRIPTIONS)
def test_a_wrong_description_is_named_by_file_line_and_key(tmp_path: Path, case: str) -> None:
    toml, parts = DESCRIPTIONS[case]
    (tmp_path / "people.xlsx").write_bytes(b"")
    message = error_of(tmp_path, toml=toml)
    for part in ["people.toml", *parts]:
        assert part in message


def test_a_name_that_is_none_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path).rename(tmp_path / "my people.toml")
    with pytest.raises(DatasetError, match="no name for a dataset"):
        Dataset.from_file(path)


def test_nothing_but_text_is_no_dataset(tmp_path: Path) -> None:
    message = error_of(tmp_path, "a,b\nx,y\nz,w\n", 'file = "people.csv"\n')
    assert "no column of the data is a feature" in message


def test_a_folder_is_loaded_by_name_and_an_empty_one_is_an_error(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "another.toml").write_text(TOML)
    assert [dataset.name for dataset in load_datasets(tmp_path)] == ["another", "people"]
    with pytest.raises(DatasetError, match="no dataset here"):
        (tmp_path / "empty").mkdir()
        load_datasets(tmp_path / "empty")
    with pytest.raises(DatasetError, match="no such folder"):
        load_datasets(tmp_path / "nowhere")


def test_a_frame_has_the_same_rules_with_rows_for_lines() -> None:
    frame = pandas.DataFrame({"age": [1.0, 2.0], "housing": ["own", "rent"], "flag": [True, False], "sick": [0, 1]})
    columns = {"housing": {"categories": ["own", "rent"]}, "sick": {"categories": [0, 1]}}
    dataset = Dataset.from_frame("people", frame, target="sick", columns=columns, policy={"release": "open"})
    assert dataset.feature_names == ("age", "housing=own", "housing=rent", "flag")
    assert dataset.features.tolist() == [[1, 1, 0, 1], [2, 0, 1, 0]]
    assert dataset.targets is not None and dataset.targets.tolist() == [0, 1]
    frame.loc[1, "housing"] = "tent"
    with pytest.raises(DatasetError, match="row 1: column 'housing'"):
        Dataset.from_frame("people", frame, columns=columns)
    with pytest.raises(DatasetError, match="two columns"):
        Dataset.from_frame("people", pandas.DataFrame([[1, 2], [3, 4]], columns=["a", "a"]))
    with pytest.raises(DatasetError, match="no rows"):
        Dataset.from_frame("people", frame[:0])


def test_a_dataset_of_one_process_has_the_local_policy() -> None:
    policy = Dataset.from_tensors("d", {"features": torch.zeros(20, 3)}).policy
    card = policy.card(20)
    assert (card.release, card.plans, card.min_rows) == ("aggregate", "any", 10) and card.max_elements > 1 << 40


def test_tensors_become_a_dataset_with_named_columns_and_are_copied() -> None:
    features, targets = torch.randn(20, 3), torch.arange(20) % 2
    dataset = Dataset.from_tensors("d", {"features": features, "targets": targets, "tags": ["#t"], "classes": 2})
    features.zero_()
    assert dataset.features.abs().sum() > 0 and dataset.tags == ("#t",) and dataset.classes == 2
    assert dataset.feature_names == ("x0", "x1", "x2")
    assert torch.equal(dataset.part("column", "x1"), dataset.features[:, 1])
    images = Dataset.from_tensors("d", {"features": torch.zeros(20, 1, 4, 4)})
    assert images.card().feature_shape == (1, 4, 4) and images.card().target_dtype == ""


@pytest.mark.parametrize(
    ("parts", "what"),
    [
        ({}, "'features'"),
        ({"features": [1, 2]}, "'features'"),
        ({"features": torch.zeros(())}, "one row"),
        ({"features": torch.zeros(0, 3)}, "one row"),
        ({"features": torch.zeros(20, 0)}, "nothing in its rows"),
        ({"features": torch.zeros(20, 3), "targets": torch.zeros(19)}, "as many rows"),
        ({"features": torch.zeros(20, 3, dtype=torch.complex64)}, "real numbers"),
        ({"features": torch.zeros(20, 3), "target": torch.zeros(20)}, "did you mean 'targets'"),
        ({"features": torch.zeros(20, 3), "classes": True}, "'classes'"),
        ({"features": torch.zeros(9, 3)}, "too few"),
        ({"features": torch.zeros(20, 3).fill_(torch.nan)}, r"'features' holds numbers that are missing \(NaN\)"),
        ({"features": torch.zeros(20, 3), "targets": torch.zeros(20).fill_(-torch.inf)}, "'targets' holds .* infinite"),
    ],
)
def test_tensors_that_are_no_dataset_are_refused(parts: dict[str, object], what: str) -> None:
    with pytest.raises(DatasetError, match=what):
        Dataset.from_tensors("d", parts)


def test_taking_the_first_rows_takes_them_of_everything() -> None:
    dataset = Dataset.from_tensors("d", {"features": torch.randn(30, 2), "targets": torch.arange(30)}).first_rows(20)
    assert dataset.rows == 20 and dataset.targets is not None and len(dataset.targets) == 20
    assert len(dataset.part("column", "x0")) == 20


def test_what_no_gateway_would_list_is_refused_where_the_file_can_be_named(tmp_path: Path) -> None:
    tags = ", ".join(f'"#{number}"' for number in range(65))
    message = error_of(tmp_path, toml=TOML.replace('"#people", "#train"', tags))
    assert "people.toml, line 3" in message and "at most 64" in message
    assert "people.toml, line 3" in error_of(tmp_path, toml=TOML.replace("#people", "#peo\\nple"))
    assert "a category has at most" in error_of(tmp_path, toml=TOML.replace('"none"', f'"{"n" * 201}"'))
    long = "n" * 201
    assert "more than 200" in error_of(tmp_path, csv="".join([HEADER, *ROWS]).replace("income", long))
    with pytest.raises(DatasetError, match="dimensions"):
        Dataset.from_tensors("deep", {"features": torch.zeros(20, *[1] * 9)})


def test_a_privacy_budget_that_nothing_enforces_is_said_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Dataset.from_file(write(tmp_path, toml=TOML.replace("min_rows = 2", "min_rows = 2\nepsilon = 1.0")))
    assert "people.toml, line 9" in caplog.text and "not enforced" in caplog.text
