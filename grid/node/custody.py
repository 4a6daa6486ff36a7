"""What a node keeps for its owner: the datasets, what they have released, their secret blocks, and the gate before them.

At the start each dataset meets what the store remembers of it. A dataset that has grown keeps its blocks; new rows come
into use in whole blocks of min_rows, so that nothing which was released before can be compared with the same thing plus a
few rows. One that has shrunk after a release is refused: which rows are gone cannot be known.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from grid.clock import Clock
from grid.errors import DatasetError
from grid.node.dataset_views import DatasetView
from grid.node.datasets import Dataset
from grid.policy import blocks
from grid.policy.approvals import Approvals
from grid.policy.blocks import Ids
from grid.policy.gate import Gate, Guarded, RateLimits
from grid.policy.rules import APPROVE, Policy
from grid.settings import NodeSettings
from grid.store.base import DatasetState, Store
from grid.wire.messages import DatasetCard

log = logging.getLogger(__name__)


class Custody:
    """All datasets of one node and the rules that guard them. Shared by all clients, for any thread.

    `owner` is the public key that answers to requests are signed with: the node's own.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        *,
        store: Store,
        settings: NodeSettings,
        dev: bool,
        clock: Clock,
        owner: bytes = b"",
    ) -> None:
        names = [dataset.name for dataset in datasets]
        if len(set(names)) != len(names):
            raise DatasetError("two datasets of this node have the same name")
        met = [meet(dataset, store) for dataset in datasets]
        self.datasets: Mapping[str, Dataset] = MappingProxyType({dataset.name: dataset for dataset, _ in met})
        self.sources: Mapping[str, DatasetView] = MappingProxyType({dataset.name: _source(dataset, cut) for dataset, cut in met})
        self.smallest_cohort = Policy().cohort(dev=dev)
        self._cards = tuple(dataset.card(dev=dev) for dataset, _ in met)
        self.approvals = Approvals(store, owner, clock)
        self.gate = Gate(
            [Guarded(dataset.name, dataset.rows, dataset.policy) for dataset, _ in met],
            store=store,
            clock=clock,
            limits=RateLimits(settings.max_releases_per_minute, settings.max_released_bytes_per_minute),
            max_errors=max(1, settings.max_private_errors),
            approvals=self.approvals,
            dev=dev,
        )

    def cards(self) -> tuple[DatasetCard, ...]:
        """What everybody may know of the datasets."""
        return self._cards


def _source(dataset: Dataset, cut: Ids) -> DatasetView:
    parts = {"features": dataset.features, **{f"column:{name}": values for name, values in dataset.values.items()}}
    if dataset.targets is not None:
        parts["targets"] = dataset.targets
    by_hand = dataset.policy.release == APPROVE
    return DatasetView(dataset.name, dataset.rows, dataset.policy.min_rows, cut, parts, by_hand)


def meet(dataset: Dataset, store: Store) -> tuple[Dataset, Ids]:
    """A dataset as it may be used now, and the block of each row. Writes what is new to the store."""
    known, min_rows = store.load(dataset.name), dataset.policy.min_rows
    if known is None or not known.partition:
        cut = _kept(known, dataset.rows, min_rows)
        if cut is None:
            cut = blocks.cut(dataset.rows, min_rows)
            elements = 0 if known is None else known.elements
            store.save(dataset.name, DatasetState(dataset.rows, min_rows, cut.astype("<i4").tobytes(), b"", elements))
        return dataset, cut
    if dataset.rows < known.rows:
        raise DatasetError(
            f"dataset {dataset.name!r} has {dataset.rows} rows, and had {known.rows} when values were released from it: which"
            " rows are gone cannot be known, so it needs a new name"
        )
    if dataset.rows > known.rows and not dataset.appends:
        raise DatasetError(
            f"dataset {dataset.name!r} has {dataset.rows} rows, and had {known.rows} when values were released from it: among"
            " folders of classes the new rows do not come last, so which they are cannot be known. It needs a new name; a"
            " folder with a labels.csv may grow at the end of that"
        )
    if known.min_rows != min_rows:
        log.warning("dataset %r: min_rows has changed; it is cut into new blocks, which old releases may forbid", dataset.name)
        cut = blocks.cut(known.rows, min_rows)
        known = dataclasses.replace(known, min_rows=min_rows, blocks=cut.astype("<i4").tobytes())
    grown = _grown(known, dataset.rows, min_rows)
    if dataset.rows > grown.rows:
        log.warning("dataset %r: the last %d rows wait until there are min_rows of them", dataset.name, dataset.rows - grown.rows)
    store.save(dataset.name, grown)
    return dataset.first_rows(grown.rows), np.frombuffer(grown.blocks, dtype="<i4")


def _kept(known: DatasetState | None, rows: int, min_rows: int) -> Ids | None:
    """The blocks of a dataset that looks as it did, if there are any."""
    if known is None or known.rows != rows or known.min_rows != min_rows:
        return None
    return np.frombuffer(known.blocks, dtype="<i4")


def _grown(known: DatasetState, rows: int, min_rows: int) -> DatasetState:
    """The state with as many of the added rows as make whole blocks. They have not been part of any release.

    All blocks have min_rows rows but one, which has the rest and the last number: clients rely on that.
    """
    added = (rows - known.rows) // min_rows * min_rows
    if added == 0:
        return known
    old, new = np.frombuffer(known.blocks, dtype="<i4"), blocks.cut(added, min_rows)
    last, more = int(old.max()), added // min_rows
    renumbered = np.where(old == last, last + more, old)
    return dataclasses.replace(
        known,
        rows=known.rows + added,
        blocks=np.concatenate([renumbered, new + last]).astype("<i4").tobytes(),
        partition=known.partition + bytes(4 * added),
    )
