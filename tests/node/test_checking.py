"""`grid data check`: all that is wrong at once, what would leave, and never a value of the rows."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import PIL.Image
import pytest
from click.testing import CliRunner, Result

from grid.cli import grid as command
from grid.client.mock import make_mock
from grid.errors import DatasetError
from grid.ids import PlanId
from grid.node.checking import Report, check_folder, what_is_public, what_leaves, what_stays
from grid.node.datasets import Dataset, load_datasets
from grid.policy.rules import Policy

CSV = "age,housing,note,sick\n" + "34,own,hello,no\n51,rent,you,yes\n" * 15
TOML = """file = "people.csv"
target = "sick"
[policy]
release = "aggregate"
plans = "builtin"
allow = ["{plan}"]
min_rows = 10
[columns.age]
min = 0
max = 110
[columns.housing]
categories = ["own", "rent"]
[columns.sick]
categories = ["no", "yes"]
""".replace("{plan}", "0" * 64)


def write(folder: Path, toml: str = TOML, csv: str = CSV, name: str = "people") -> Path:
    (folder / f"{name}.csv").write_text(csv)
    (folder / f"{name}.csv").chmod(0o600)
    (folder / f"{name}.toml").write_text(toml.replace("people.csv", f"{name}.csv"))
    return folder


def report_of(folder: Path, name: str = "people") -> Report:
    return next(report for report in check_folder(folder).datasets if report.name == name)


def run(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(command, ["data", "check", str(folder), *options])


def words(result: Result) -> str:
    """What was shown, wherever its lines were broken."""
    return " ".join(result.output.split())


def test_a_sound_folder_is_shown_and_has_the_exit_code_0(tmp_path: Path) -> None:
    result = run(write(tmp_path))
    assert result.exit_code == 0, result.output
    shown = words(result)
    for part in ("people.csv (CSV)", "30 rows", "target sick of 2 classes", "0 to 110", "own, rent", "not used"):
        assert part in shown
    for part in ("may leave", "never leaves", "public", "ds.mock", "1 dataset, 0 errors, 1 warning; a node would start"):
        assert part in shown
    assert report_of(tmp_path).card == Dataset.from_file(tmp_path / "people.toml").card()


BROKEN = """file = "people.csv"
tags = "#x"
descripton = "People"
target = "sick"
[policy]
release = "sometimes"
min_rows = "ten"
[columns.age]
min = 0
max = 110
[columns.housing]
categories = ["own"]
[columns.weight]
min = 0
[columns.sick]
categories = ["no", "yes"]
"""
BROKEN_CSV = "age,housing,income,sick\n" + "34,own,1,no\n" * 12 + "340,own,x,maybe\n,rent,2,\n51,rent\n120,own,3,yes\n"


def test_every_problem_of_every_dataset_is_told_at_once(tmp_path: Path) -> None:
    write(tmp_path, BROKEN, BROKEN_CSV)
    write(tmp_path, "file = \n", name="second")
    (tmp_path / "third.toml").write_text('file = "third.parquet"\n')
    (tmp_path / "fourth.toml").write_text("tags = []\n")
    report = check_folder(tmp_path)
    assert not report.sound
    errors = {one.name: one.errors for one in report.datasets}
    expected = [
        "people.toml, line 2: 'tags' must be a list",
        "people.toml, line 3: unknown key 'descripton'; did you mean 'description'?",
        "people.toml, line 6: 'release' is one of",
        "people.toml, line 7: 'min_rows' is a whole number",
        "people.toml, line 12: 'categories' must be a list of 2",
        "people.toml, line 13: the data has no column 'weight'",
        "people.csv, line 16: 2 cells where the header has 4",
        "people.csv, line 14: column 'age' holds a value beyond its declared 'max' (and in 1 more rows)",
        "people.csv, line 15: column 'age' has no value",
        "people.csv, line 14: column 'income' holds something that is not a number",
        "people.csv, line 14: column 'sick' holds a category that is not declared",
        "people.csv, line 15: column 'sick' has no value",
    ]
    for part in expected:
        assert any(part in error for error in errors["people"]), (part, errors["people"])
    assert len(errors["people"]) == len(expected)
    for name, part in (("second", "not valid TOML"), ("third", "there is no file"), ("fourth", "'file' is missing")):
        assert part in errors[name][0]
    result = run(tmp_path)
    shown = words(result)
    assert result.exit_code == 1 and "4 datasets, 15 errors, 1 warning; a node would not start" in shown
    for secret in ("340", "maybe"):
        assert secret not in shown.replace(str(tmp_path), "")


def test_the_first_error_of_a_node_points_to_the_check(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"line 3: unknown key.*\n.*`grid data check"):
        load_datasets(write(tmp_path, BROKEN.replace("tags = ", "# tags = "), BROKEN_CSV))


def policy(**changes: Any) -> str:
    """The description with other rules."""
    rules = {"release": '"aggregate"', "plans": '"any"', "min_rows": "10", "max_elements": "50"} | changes
    written = "\n".join(f"{key} = {value}" for key, value in rules.items() if value is not None)
    head, _, rest = TOML.partition("[policy]")
    return f"{head}[policy]\n{written}\n{rest[rest.index('[columns.age]') :]}"


@pytest.mark.parametrize(
    ("toml", "what"),
    [
        (policy(release='"open"'), "line 4: everybody in the grid can fetch every row"),
        (policy(release=None), ": nothing leaves this dataset"),
        (policy(release='"deny"'), "line 4: nothing leaves this dataset"),
        (policy(release='"approve"'), "line 4: each result waits for your word"),
        (policy(), "line 5: any program may be run"),
        (policy(plans='"builtin"'), "line 5: no plan is allowed yet"),
        (policy(min_rows="2"), "line 6: results may stand for as few as 2 rows"),
        (policy(min_rows="14"), "line 6: 30 rows make less than 3 blocks"),
        (policy(max_elements="90"), "line 7: 90 numbers may leave (max_elements), and all features of all rows are 90"),
        (policy(max_elements="0"), "line 7: no number may leave"),
        (policy(epsilon="1.0"), "line 8: 'epsilon' and 'delta' are kept for later and not enforced yet"),
        (TOML, "column 'note' is text without declared categories"),
        (TOML.replace("max = 110", 'max = 110\nmissing = "mean-of-bounds"'), "column 'age' has no value in 2 rows"),
    ],
)
def test_what_an_owner_should_look_at_is_named_with_its_line(tmp_path: Path, toml: str, what: str) -> None:
    csv = CSV + ",own,x,no\n,own,x,no\n" if "mean-of-bounds" in toml else CSV
    report = report_of(write(tmp_path, toml, csv))
    assert not report.errors
    assert any(what in warning for warning in report.warnings), report.warnings


def test_too_few_rows_are_an_error(tmp_path: Path) -> None:
    report = report_of(write(tmp_path, policy(min_rows="31")))
    assert "line 6: 30 rows are too few" in report.errors[0]


def test_files_that_others_can_read_and_files_of_no_dataset_are_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "people.csv").chmod(0o644)
    (tmp_path / "stray.parquet").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "scans" / "cat").mkdir(parents=True)
    PIL.Image.new("L", (2, 2)).save(tmp_path / "scans" / "cat" / "1.png")
    report = check_folder(tmp_path)
    assert any("its group and every user of this machine can read" in warning for warning in report.datasets[0].warnings)
    assert [warning.split(": ")[0] for warning in report.warnings] == [str(tmp_path / "scans"), str(tmp_path / "stray.parquet")]
    (tmp_path / "people.csv").chmod(0o600)
    assert not any("can read" in warning for warning in report_of(tmp_path).warnings)


def test_an_empty_folder_and_none_are_errors(tmp_path: Path) -> None:
    pandas.DataFrame({"a": [1]}).to_csv(tmp_path / "a.csv")
    report = check_folder(tmp_path)
    assert "no dataset here" in report.errors[0] and "a.csv: belongs to no dataset" in report.warnings[0]
    assert run(tmp_path).exit_code == 1
    assert run(tmp_path / "nowhere").exit_code == 1


def test_programs_get_all_of_it_as_json(tmp_path: Path) -> None:
    found = json.loads(run(write(tmp_path, BROKEN, BROKEN_CSV), "--json").stdout)
    assert found["sound"] is False and len(found["datasets"][0]["errors"]) == 12
    (one,) = json.loads(run(write(tmp_path), "--json").stdout)["datasets"]
    assert one["rows"] == 30 and one["classes"] == 2 and one["target"] == "sick" and list(one["unused"]) == ["note"]
    assert one["policy"]["min_rows"] == 10 and one["policy"]["max_elements"] == 9
    assert [column["name"] for column in one["columns"]] == ["age", "housing", "note", "sick"]
    assert len(one["mock"]["age"]) == 3 and one["leaves"] and one["stays"] and one["public"]


def test_it_fits_80_columns_and_holds_no_control_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grid.cli_data.PIPE_WIDTH", 80)
    wide = ",".join(f"a_rather_long_column_name_{number}" for number in range(40))
    cells = ",".join("1" for _ in range(40))
    write(tmp_path, 'description = "evil \\u001b[31m [red]text"\nfile = "wide.csv"\n', f"{wide}\n" + f"{cells}\n" * 20, "wide")
    write(tmp_path)
    shown = run(tmp_path).output
    assert max(map(len, shown.splitlines())) <= 80
    assert "\x1b" not in shown and "[red]text" in shown and "and 10 more" in shown


def test_the_policy_in_plain_words() -> None:
    aggregate = Policy(release="aggregate", plans="any", min_rows=7, max_elements=1234, sinks=("bob",))
    said = " ".join(what_leaves(aggregate, 100))
    assert "any program" in said and "at least 7" in said and "1,234 numbers" in said and "bob" in said and "sums over" in said
    assert "fewer than 7 rows" in what_stays(aggregate)[0]
    assert "every row included" in what_leaves(Policy(release="open"), 100)[0] and not what_stays(Policy(release="open"))
    assert what_leaves(Policy(release="deny"), 100) == ["Nothing, to anybody."]
    assert what_stays(Policy(release="deny")) == ["Rows, and anything that was computed from them."]
    (approved,), (kept,) = what_leaves(Policy(release="approve"), 100), what_stays(Policy(release="approve"))
    assert "`grid approve`" in approved and "single rows included" in approved, "what an owner approves does leave"
    assert "have not approved" in kept
    assert "turned back into rows" not in said
    assert any("turned back into rows" in one for one in what_leaves(dataclasses.replace(aggregate, updates="single"), 100))
    builtin = dataclasses.replace(aggregate, plans="builtin", share=False, sinks=())
    assert len(what_leaves(builtin, 100)) == 1 and "the 0 plans in `allow` alone" in what_leaves(builtin, 100)[0]


def test_who_may_have_shares_in_plain_words(tmp_path: Path) -> None:
    listed = Policy(release="deny", allow=(PlanId("1" * 64),), share=("bob", "carol"))
    said = " ".join(what_leaves(listed, 100))
    assert "bob, carol and this node" in said and "1 plans in `allow`" in said and "in the clear" in what_stays(listed)[0]
    assert "to others, 7 numbers over" in what_leaves(dataclasses.replace(listed, max_elements=7), 100)[1]
    (own,) = what_leaves(dataclasses.replace(listed, allow=()), 100)
    assert "bob, carol and this node" in own and own.endswith("Results open at this node, for you.")
    assert what_leaves(dataclasses.replace(listed, share=True), 100) == ["Nothing, to anybody."]
    table = 'file = "people.csv"\n[policy]\nmin_rows = 10\n'
    anybody = report_of(write(tmp_path, table + 'release = "aggregate"\nshare = true\n'))
    assert any("join forces" in warning for warning in anybody.warnings)
    for allowed, warned in (("1" * 64, True), ("1" * 64 + "(alice/people, bob/people)", False)):
        loose = report_of(write(tmp_path, table + f'release = "deny"\nshare = ["bob"]\nallow = ["{allowed}"]\n'))
        assert any("whatever it likes" in warning for warning in loose.warnings) is warned
    broken = report_of(write(tmp_path, table + 'release = "aggregate"\nshare = ["b b"]\n'))
    assert any("names of nodes" in error and "line 5" in error for error in broken.errors)


def test_what_is_public_is_what_the_card_holds(tmp_path: Path) -> None:
    report = report_of(write(tmp_path))
    assert report.card is not None
    said = ", ".join(what_is_public(report.card))
    for part in ("(30)", "4 columns", "the bounds of age", "the categories of housing, sick", "(3)"):
        assert part in said


def calls(work: Callable[[], object]) -> int:
    """Functions that are called, those in C included."""
    count = 0

    def note(frame: object, event: str, arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("rule", ["min = 2\nmax = 1", 'categories = ["a", "b"]', ""])
def test_twice_the_columns_are_twice_the_work(rule: str, tmp_path: Path) -> None:
    """Columns whose description is wrong, columns of categories, and text that nobody declared."""

    def checked(width: int) -> int:
        names = [f"c{number}" for number in range(width)]
        folder = tmp_path / str(width)
        folder.mkdir()
        declared = "".join(f"[columns.{name}]\n{rule}\n" for name in names) if rule else ""
        table = "\n".join([",".join([*names, "n"]), *[",".join(["a"] * width + ["1"])] * 12])
        write(folder, f'file = "people.csv"\n{declared}', table)

        def check() -> None:
            card = report_of(folder).card
            if card is not None:
                make_mock(card, 12)

        return calls(check)

    checked(1)  # the first time anything runs, it is also imported
    few, many = checked(150), checked(300)
    assert many < 2.2 * few
