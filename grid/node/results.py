"""Results that committees opened to this node with rows of its own behind them: kept as files, for its owner to use.

Each is an `.npy` file beside a `.json` with what is known of it, in STATE/results, mode 0600, written as a whole. Their number
and all their bytes are bounded, and of each client an eighth of that; a result over that is not opened here, and none that was
kept is ever thrown away. A node without a state folder keeps none.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import io
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grid.clock import Clock
from grid.crypto.files import read_json, write_json, write_private
from grid.errors import GridError, QuotaExceeded
from grid.ids import PeerId, random_id
from grid.tensors.buffers import from_frame
from grid.wire.messages import DeliverShare, TensorFrame

log = logging.getLogger(__name__)

FOLDER = "results"
MAX_RESULTS = 10_000
MAX_BYTES = 4 << 30
CLIENTS_PART = 8
"""One client has an eighth of both at most."""


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """One result. `file` has its values; `at` is the wall time in seconds."""

    file: Path
    datasets: Sequence[str]
    client: str
    client_name: str
    plan: str
    dtype: str
    shape: Sequence[int]
    at: float


class Results:
    """The results of one node. `state` None keeps nothing."""

    def __init__(self, state: Path | None, *, me: PeerId, clock: Clock) -> None:
        self._folder = None if state is None else state / FOLDER
        self._me, self._clock = me, clock
        self._lock = asyncio.Lock()

    async def keep(self, opened: DeliverShare, value: TensorFrame, client_name: str) -> None:
        """Keep a result, if rows of this node are behind it. Raises `QuotaExceeded` where there is no room."""
        datasets = sorted({one.dataset for one in opened.behind if one.node == self._me})
        if not datasets:
            return
        opening, at = opened.opening, self._clock.wall()
        log.info(
            "a result on shares of %s opens here, for client %s: %s%s of plan %s",
            ", ".join(datasets), opening.client, opening.dtype, list(opening.shape), opening.plan or "(none)",
        )  # fmt: skip
        if self._folder is None:
            return
        facts = {
            "datasets": datasets,
            "client": opening.client,
            "client_name": client_name,
            "plan": opening.plan,
            "dtype": opening.dtype,
            "shape": list(opening.shape),
            "at": at,
        }
        async with self._lock:
            await asyncio.to_thread(_write, self._folder, facts, value)


def _write(folder: Path, facts: Mapping[str, Any], value: TensorFrame) -> None:
    data = _npy(value)
    begins = hashlib.sha256(str(facts["client"]).encode()).hexdigest()[:12]  # a client is counted by the names of its files
    kept = {path.name: path.stat().st_size for path in folder.glob("*.npy")} if folder.is_dir() else {}
    own = [size for name, size in kept.items() if name.startswith(f"{begins}-")]
    for whose, sizes, part in (("", list(kept.values()), 1), (" of this client", own, CLIENTS_PART)):
        if len(sizes) >= MAX_RESULTS // part or sum(sizes) + len(data) > MAX_BYTES // part:
            raise QuotaExceeded(
                f"this node keeps {len(sizes)} results{whose} for its owner, and no more fit; the owner makes room by deleting"
                f" some (`grid results` lists them; at most {MAX_RESULTS // part:,}, and {MAX_BYTES / part / (1 << 30):g} GiB)"
            )
    name = f"{begins}-{random_id()[:19]}"
    write_private(folder / f"{name}.npy", data)
    write_json(folder / f"{name}.json", dict(facts))


def _npy(value: TensorFrame) -> bytes:
    tensor = from_frame(value)
    if tensor.dtype is torch.bfloat16:  # numpy has none
        tensor = tensor.float()
    file = io.BytesIO()
    np.save(file, tensor.numpy(), allow_pickle=False)
    return file.getvalue()


def listed(state: Path) -> list[Result]:
    """The results in a state folder, the oldest first. What is no result is left out."""
    found = []
    for path in (state / FOLDER).glob("*.json"):
        try:
            content = read_json(path, "a result") or {}
            found.append(Result(file=path.with_suffix(".npy"), **content))
        except (GridError, TypeError):
            log.warning("%s: not what this node has written", path)
    return sorted(found, key=lambda one: one.at)


def as_json(results: Sequence[Result]) -> str:
    """For programs."""
    return json.dumps([{**dataclasses.asdict(one), "file": str(one.file)} for one in results])
