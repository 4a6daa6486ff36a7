"""Datasets as a client sees them: what their owners say of them, made-up data, and remote tensors that stand for their rows.

Nothing here reads a row. `batches` and `split` draw whole blocks, into which the node cut the dataset once, in a secret
order, so that any number of shuffled epochs treats the rows of a block alike and stays releasable.
"""

from __future__ import annotations

import dataclasses
import math
import random
import secrets
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from grid.client.dispatch import Place
from grid.client.tensors import RemoteTensor
from grid.display import counted, html, printable, text_table
from grid.errors import InvalidRequest, NotFound
from grid.wire.messages import ColumnCard, DatasetCard, PolicyCard

if TYPE_CHECKING:
    from grid.client.mock import Mock


class Opener(Protocol):
    """The session with the node that has the dataset; `connection.NodeConnection` is one."""

    def open_dataset(
        self, dataset: str, part: str, shape: Sequence[int], dtype: str, *, column: str = "", blocks: tuple[int, ...] = ()
    ) -> RemoteTensor: ...


class Owner(Place, Protocol):
    """The node that has the dataset; `nodes.Node` is one."""

    def connection(self) -> Opener: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset at a node, or the part of one that `split` gave.

    `card` is all that the owner says of it. Each use of `features`, `targets` or a column gives a new remote tensor.
    """

    node: Owner
    card: DatasetCard
    blocks: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """The name that its owner gave it, unique at its node."""
        return self.card.name

    @property
    def rows(self) -> int:
        """Number of rows; all of them count, whatever may be asked about them."""
        if self.blocks is None:
            return self.card.rows
        return sum(self._block_rows(block) for block in self.blocks)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns; `card.columns` has what the owner says of each."""
        return tuple(column.name for column in self.card.columns)

    @property
    def tags(self) -> tuple[str, ...]:
        """What `g.search` finds it by."""
        return self.card.tags

    @property
    def description(self) -> str:
        """What its owner says of it."""
        return self.card.description

    @property
    def policy(self) -> PolicyCard:
        """The owner's rules for what may leave."""
        return self.card.policy

    @property
    def classes(self) -> int:
        """Number of the target's categories; 0 where it is a number."""
        return self.card.classes

    @cached_property
    def mock(self) -> Mock:
        """Made-up rows of the same schema, here: a DataFrame, with `.features` and `.targets` as tensors."""
        from grid.client.mock import make_mock  # brings pandas, which takes half a second and few programs need

        return make_mock(self.card, self.rows)

    @property
    def features(self) -> RemoteTensor:
        """`(rows, ...)`, every other numeric column than the target, categories as one-hot columns."""
        return self._open("features", self.card.feature_shape, self.card.feature_dtype, self.blocks)

    @property
    def targets(self) -> RemoteTensor:
        """`(rows, ...)`. Raises `NotFound` where the dataset has no target."""
        if not self.card.target_dtype:
            raise NotFound(f"the dataset {self.name!r} at {self.node.name} has no target")
        return self._open("targets", self.card.target_shape, self.card.target_dtype, self.blocks)

    def __getitem__(self, column: str) -> RemoteTensor:
        """One column, `(rows,)`: numbers as they are, categories as int64 codes in the owner's order."""
        card = self._column(column)
        if card.kind == "category":
            dtype = "i8"
        else:
            dtype = {"feature": self.card.feature_dtype, "target": self.card.target_dtype}.get(card.role, "f4")
        return self._open("column", (), dtype, self.blocks, column)

    def batches(
        self, batch_size: int, shuffle: bool = False, seed: int | None = None
    ) -> Iterator[tuple[RemoteTensor, RemoteTensor]]:
        """Mini-batches `(features, targets)` of whole blocks: about `batch_size` rows each, at least `policy.min_rows`.

        `seed` makes a shuffle repeatable; the order of blocks is no secret, which rows they hold is the node's.
        """
        if type(batch_size) is not int or batch_size < 1:
            raise InvalidRequest(f"batch_size is {batch_size!r}; it must be a whole number of at least 1")
        if not self.card.target_dtype:
            raise NotFound(f"the dataset {self.name!r} at {self.node.name} has no target to make batches with; use features")
        blocks = list(self._all_blocks())
        if shuffle:
            random.Random(secrets.randbits(64) if seed is None else seed).shuffle(blocks)
        return self._batches(blocks, max(1, batch_size // self._block_size))

    def _batches(self, blocks: Sequence[int], at_once: int) -> Iterator[tuple[RemoteTensor, RemoteTensor]]:
        for start in range(0, len(blocks), at_once):
            part = tuple(blocks[start : start + at_once])
            yield (
                self._open("features", self.card.feature_shape, self.card.feature_dtype, part),
                self._open("targets", self.card.target_shape, self.card.target_dtype, part),
            )

    def split(self, fractions: Sequence[float], seed: int | None = None) -> list[Dataset]:
        """Parts of about these fractions of the rows, of whole blocks, without a block in two of them.

        Raises `InvalidRequest` where the fractions are no fractions, or a part would be empty.
        """
        if not isinstance(fractions, Sequence):
            raise InvalidRequest("split takes a list of fractions, such as ds.split([0.8, 0.2])")
        if not fractions or any(not part > 0 for part in fractions) or math.fsum(fractions) > 1 + 1e-9:
            raise InvalidRequest("split takes fractions above 0 that add up to at most 1")
        blocks = list(self._all_blocks())
        random.Random(secrets.randbits(64) if seed is None else seed).shuffle(blocks)
        parts, start, share = [], 0, 0.0
        for fraction in fractions:
            share += fraction
            end = min(len(blocks), round(share * len(blocks)))
            if end <= start:
                raise InvalidRequest(
                    f"the dataset {self.name!r} has {len(blocks)} blocks of {self._block_size} rows; {fraction:g} of that is none"
                )
            parts.append(dataclasses.replace(self, blocks=tuple(sorted(blocks[start:end]))))
            start = end
        return parts

    @property
    def _block_size(self) -> int:
        return max(1, self.policy.min_rows)

    @property
    def _block_count(self) -> int:
        return max(1, self.card.rows // self._block_size)

    def _all_blocks(self) -> Sequence[int]:
        return range(self._block_count) if self.blocks is None else self.blocks

    def _block_rows(self, block: int) -> int:
        """Each has min_rows rows; the last one takes the rest."""
        last = self._block_count - 1
        return self._block_size if block < last else self.card.rows - last * self._block_size

    def _open(
        self, part: str, shape: tuple[int, ...], dtype: str, blocks: tuple[int, ...] | None, column: str = ""
    ) -> RemoteTensor:
        rows = self.card.rows if blocks is None else sum(self._block_rows(block) for block in blocks)
        connection = self.node.connection()
        opened = connection.open_dataset(self.name, part, (rows, *shape), dtype, column=column, blocks=blocks or ())
        if part != "column":
            opened._mock = lambda: self.mock.features if part == "features" else self.mock.targets
        return opened

    def _column(self, name: str) -> ColumnCard:
        for column in self.card.columns:
            if column.name == name:
                if column.kind == "text":
                    raise NotFound(f"the column {name!r} of {self.name!r} is text without declared categories: it cannot be used")
                return column
        raise NotFound(f"the dataset {self.name!r} has no column {name!r}; it has {_listed(self.columns)}")

    def __repr__(self) -> str:
        name, tags = printable(self.name), "".join(f" {printable(tag)}" for tag in self.tags)
        part = f" (part of {self.card.rows})" if self.blocks is not None else ""
        size = f"{counted(self.rows, 'row')}{part}, {counted(len(self.columns), 'column')}"
        return f"<Dataset {name} at {printable(self.node.name)}: {size}{tags}>"

    def _repr_html_(self) -> str:
        facts = [
            ("description", self.description),
            ("rows", self.rows if self.blocks is None else f"{self.rows} of {self.card.rows}"),
            ("tags", " ".join(self.tags)),
            ("target", next((column.name for column in self.card.columns if column.role == "target"), "")),
            ("may leave", self.policy.summary),
        ]
        columns = ("column", "role", "kind", "range or categories", "missing cells")
        rows = [
            (column.name, column.role, column.kind, _range(column), column.missing.replace("error", ""))
            for column in self.card.columns
        ]
        return html(self.name, f"dataset at {self.node.name}", facts=facts, columns=columns, rows=rows)


def _range(column: ColumnCard) -> str:
    if column.categories:
        return ", ".join(column.categories[:10]) + (" ..." if len(column.categories) > 10 else "")
    if column.minimum is None and column.maximum is None:
        return ""
    least = "" if column.minimum is None else f"{column.minimum:g}"
    return f"{least} to {'' if column.maximum is None else f'{column.maximum:g}'}"


COLUMNS = ("node", "dataset", "rows", "columns", "tags", "may leave", "description")


def row_of(dataset: Dataset) -> tuple[str, ...]:
    """One line of a table of datasets, by `COLUMNS`."""
    rows, columns, tags = str(dataset.rows), str(len(dataset.columns)), " ".join(dataset.tags)
    return dataset.node.name, dataset.name, rows, columns, tags, dataset.policy.summary, dataset.description


class Datasets(list[Dataset]):
    """What a search found: a list that shows as a table."""

    def __repr__(self) -> str:
        return text_table(counted(len(self), "dataset"), COLUMNS, [row_of(one) for one in self])

    def _repr_html_(self) -> str:
        return html(counted(len(self), "dataset"), columns=COLUMNS, rows=[row_of(one) for one in self])


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:20])
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "") if names else "no named columns"


class ByName(Mapping[str, Dataset]):
    """Datasets of one node by name; a missing name raises `NotFound`."""

    def __init__(self, node: str, datasets: Sequence[Dataset]) -> None:
        self._node = node
        self._datasets = {dataset.name: dataset for dataset in datasets}

    def __getitem__(self, name: str) -> Dataset:
        if name not in self._datasets:
            raise NotFound(f"{self._node} has no dataset {name!r}; it has {_listed(tuple(self._datasets))}")
        return self._datasets[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._datasets)

    def __len__(self) -> int:
        return len(self._datasets)

    def __repr__(self) -> str:
        return repr(Datasets(self._datasets.values()))

    def _repr_html_(self) -> str:
        return Datasets(self._datasets.values())._repr_html_()
