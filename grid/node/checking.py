"""What a node would make of a folder of datasets, before it starts: every problem at once, and in plain words what would leave.

All rows are read, as a node reads them, and nothing of them is kept. What is reported is for the owner, at the owner's
machine; it names files, lines, columns and numbers of rows, never a value.
"""

from __future__ import annotations

import dataclasses
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from grid.errors import DatasetError
from grid.node.datasets import KINDS, Dataset, description_paths, open_reader
from grid.node.descriptions import Description, read_description
from grid.node.findings import Findings
from grid.node.image_reader import SUFFIXES
from grid.node.readers import FEATURES, Schema
from grid.policy.blocks import count
from grid.policy.rules import AGGREGATE, ANY, ANYBODY, APPROVE, DEFAULT_MIN_ROWS, DENY, OPEN, Policy
from grid.wire.messages import DatasetCard

FORMATS: Mapping[str, str] = {".csv": "CSV", ".parquet": "Parquet", ".npz": "npz", ".safetensors": "safetensors"}
FEW_BLOCKS = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """One dataset as a node would have it. `card` is None where too much is wrong to say what it would be.

    `unused` has the columns and arrays that are no features, and why; `missing` the number of cells that are filled in.
    """

    name: str
    file: str
    format: str
    errors: Sequence[str]
    warnings: Sequence[str]
    card: DatasetCard | None
    policy: Policy
    unused: Mapping[str, str]
    missing: Mapping[str, int]


@dataclasses.dataclass(frozen=True, slots=True)
class FolderReport:
    """All datasets of a folder, and what concerns none of them."""

    datasets: Sequence[Report]
    errors: Sequence[str]
    warnings: Sequence[str]

    @property
    def sound(self) -> bool:
        """Whether a node would start with this folder."""
        return not self.errors and not any(report.errors for report in self.datasets)


def check_folder(folder: Path) -> FolderReport:
    """Look at every dataset of a folder. What is wrong is in the report; nothing is raised."""
    try:
        paths = description_paths(folder)
    except DatasetError as error:
        stray = _uncovered(folder, set()) if folder.is_dir() else []
        return FolderReport((), (error.message,), stray)
    covered: set[Path] = set()
    reports = [_check(path, covered) for path in paths]
    return FolderReport(reports, (), _uncovered(folder, covered))


def _check(path: Path, covered: set[Path]) -> Report:
    findings = Findings(strict=False)
    description: Description | None = None
    card: DatasetCard | None = None
    with findings.noting():
        description = read_description(path, findings)
        covered.add(description.path.resolve())
        card = _card(description, findings)
        if not description.policy_broken:
            _look_at_policy(description, card, findings)
    if description is not None:
        _look_at_file(description, findings)
    return Report(
        name=path.stem,
        file="" if description is None else description.path.name,
        format="" if description is None else _format(description.path),
        errors=findings.errors,
        warnings=findings.warnings,
        card=card,
        policy=Policy() if description is None else description.policy,
        unused=findings.unused,
        missing=findings.missing,
    )


def _card(description: Description, findings: Findings) -> DatasetCard:
    """Read every row, and say what everybody would know of the dataset."""
    reader = open_reader(description, findings)
    schema = reader.schema
    if schema.rows and schema.parts[FEATURES].row_bytes:
        for _ in reader.blocks():
            pass
    return Dataset.described(description, schema, _shapes(schema), findings).card()


def _shapes(schema: Schema) -> dict[str, torch.Tensor]:
    """The dataset's tensors without their elements."""
    return {
        name: torch.empty(schema.rows, *part.inner, dtype=part.dtype, device="meta") for name, part in schema.parts.items()
    }


def _format(path: Path) -> str:
    return "images" if path.is_dir() else FORMATS.get(path.suffix.lower(), "")


# ------------------------------------------------------------ what to look at


def _look_at_policy(description: Description, card: DatasetCard, findings: Findings) -> None:
    policy, where = description.policy, description.where

    def warn(what: str, key: str) -> None:
        findings.warn(where.error(what, section="policy", key=key).message)

    if policy.release == DENY:
        warn('nothing leaves this dataset (release = "deny"); write "aggregate" to let results leave', "release")
    if policy.release == APPROVE:
        warn('each result waits for your word (release = "approve"): `grid requests --state DIR` shows what waits', "release")
    if policy.release == OPEN:
        warn('everybody in the grid can fetch every row (release = "open"); "aggregate" keeps rows here', "release")
    if policy.parties() == ANYBODY and policy.release != OPEN:
        warn(
            "any two of whatever three nodes a client names could join forces and read the rows that it shares with them (share ="
            " true); a list of nodes that you trust prevents that",
            "share",
        )
    if policy.parties() and any(arguments is None for _, arguments in policy.calls):
        warn(
            "on secret shares, a client may pass whatever it likes beside these rows to a plan in `allow`, and nobody sees it;"
            ' "ID(NODE/DATASET, ...)" opens a result only where the plan was given these datasets',
            "allow",
        )
    if policy.release != AGGREGATE:
        return
    if policy.plans == ANY:
        warn(
            'any program may be run (plans = "any"), so questions about content pass: a sum over the rows with one rare value'
            ' is one person\'s value. "builtin" and a list of plans that you have read in `allow` prevent that',
            "plans",
        )
    elif not policy.allow:
        warn('no plan is allowed yet (plans = "builtin" and an empty `allow`), so no program\'s result leaves', "plans")
    if policy.min_rows < DEFAULT_MIN_ROWS:
        warn(f"results may stand for as few as {policy.min_rows} rows (min_rows); {DEFAULT_MIN_ROWS} is usual", "min_rows")
    elif count(card.rows, policy.min_rows) < FEW_BLOCKS and card.rows >= policy.min_rows:
        few = f"{card.rows} rows make less than {FEW_BLOCKS} blocks of min_rows = {policy.min_rows}"
        warn(f"{few}: a batch is nearly all of them", "min_rows")
    held = card.rows * max(1, torch.Size(card.feature_shape).numel())
    limit = policy.element_limit(card.rows)
    if not limit:
        warn("no number may leave (max_elements, by default a third of the rows)", "max_elements")
    if limit >= held:
        warn(f"{limit:,} numbers may leave (max_elements), and all features of all rows are {held:,}", "max_elements")


def _look_at_file(description: Description, findings: Findings) -> None:
    path = description.path
    for name, cells in findings.missing.items():
        findings.warn(f"{path}: column {name!r} has no value in {cells} rows, which the declared rule for missing ones fills in")
    if path.exists():
        mode = stat.S_IMODE(path.stat().st_mode)
        readable = [who for who, bit in (("its group", stat.S_IRGRP), ("every user", stat.S_IROTH)) if mode & bit]
        if readable:
            change = "chmod -R go-rwx" if path.is_dir() else "chmod 600"
            who = " and ".join(readable)
            findings.warn(f"{path}: {who} of this machine can read the data (mode {mode:03o}): {change} {path}")


def _uncovered(folder: Path, covered: set[Path]) -> list[str]:
    """Data that lies in the folder and belongs to no dataset."""
    stray = []
    for path in sorted(folder.iterdir()):
        if path.resolve() in covered or path.name.startswith("."):
            continue
        if path.suffix.lower() in KINDS or (path.is_dir() and _has_images(path)):
            stray.append(f"{path}: belongs to no dataset; to offer it, write {path.stem}.toml with file = \"{path.name}\"")
    return stray


def _has_images(folder: Path) -> bool:
    around = [*folder.iterdir(), *(inner for each in folder.iterdir() if each.is_dir() for inner in each.iterdir())]
    return any(path.name.lower().endswith(SUFFIXES) for path in around)


# ------------------------------------------------------------ the policy in plain words


def what_leaves(policy: Policy, rows: int) -> list[str]:
    """What may leave a dataset of so many rows under its policy."""
    if policy.release == DENY:
        return _on_shares(policy) or ["Nothing, to anybody."]
    if policy.release == APPROVE:
        return [
            "What you approve with `grid approve`: each time one result of a plan, once, to the client that asked. It may be"
            " anything that a plan makes of the rows, single rows included: no rule checks it but you.",
            *_updates(policy),
            *_on_shares(policy),
        ]
    if policy.release == OPEN:
        return ["Everything, every row included, to every client of the grid."]
    whose = "any program" if policy.plans == ANY else f"the {len(policy.allow)} plans in `allow` alone"
    found = [
        f"Results of {whose}, where every row counts alike in groups of at least {policy.min_rows}"
        f" (sums, means, gradients): {policy.element_limit(rows):,} numbers over the dataset's life."
    ]
    if policy.may_share:
        nodes = f"{policy.cohort()} nodes or more"
        found.append(f"The same kind of results into sums over {nodes}, of which only the sum becomes known.")
    found += _updates(policy)
    if policy.sinks:
        found.append(f"Rows and what is made of them, to the nodes {', '.join(policy.sinks)}.")
    return found + _on_shares(policy)


def _updates(policy: Policy) -> list[str]:
    """What federated jobs may send beside sums."""
    single = "What federated jobs learn of the rows, by itself, to the gateway: it can be turned back into rows."
    return [single] if policy.may_update_singly else []


def _on_shares(policy: Policy) -> list[str]:
    """What committees may do with the rows, as far as the owner has said it."""
    parties = policy.parties()
    if not parties:
        return []
    who = "any nodes that a client names" if parties == ANYBODY else _some(parties)
    found = [
        f"Rows on secret shares, to committees of {who} and this node: no single one can read them, any two that join forces"
        " could. Results open at this node, for you."
    ]
    if policy.allow:
        limit = "" if policy.max_elements is None else f", {policy.max_elements:,} numbers over the dataset's life"
        found.append(
            f"What the {len(policy.allow)} plans in `allow` make of rows on shares, to others{limit}; no rule looks at it."
        )
    return found


def what_stays(policy: Policy) -> list[str]:
    """What never leaves under this policy."""
    if policy.release == OPEN:
        return []
    if policy.release == DENY:
        clear = ", in the clear" if policy.parties() else ""
        return [f"Rows, and anything that was computed from them{clear}."]
    if policy.release == APPROVE:
        return ["Whatever you have not approved: without your word no row, and nothing that was computed from rows."]
    return [
        "Rows, parts of rows, and rows picked by position; the largest, smallest or median value;"
        f" anything that fewer than {policy.min_rows} rows can be told by."
    ]


def what_is_public(card: DatasetCard) -> list[str]:
    """What everybody in the grid and whoever reads the gateway's dashboard sees, without any release."""
    bounded = [column.name for column in card.columns if column.minimum is not None or column.maximum is not None]
    listed = [column.name for column in card.columns if column.categories]
    found = ["its name, description and tags", f"the number of rows ({card.rows:,})", "this policy"]
    if card.columns:
        found.append(f"the names and kinds of {len(card.columns)} columns")
    if bounded:
        found.append(f"the bounds of {_some(bounded)}")
    if listed:
        found.append(f"the categories of {_some(listed)}")
    shape = " x ".join(map(str, card.feature_shape)) or "one number"
    return [*found, f"the form of a row's features ({shape})"]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
