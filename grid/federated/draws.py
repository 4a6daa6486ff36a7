"""The randomness of one node's training in one round: the order of rows, and dropout.

All of it comes of 32 bytes: from the node's seed in the job and the round, where the job has a seed, so that a run can be
repeated; from the system's cryptographic generator where it has none.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import torch

from grid.crypto.keys import fresh_seed
from grid.crypto.prg import keystream

DOMAIN = b"grid/training/1"

DROPOUT = 1 << 32
"""The stream that masks come from; orders of epochs have those below."""


class Draws:
    """Equal seeds and rounds give equal draws on every machine; `seed` is b"" for none."""

    def __init__(self, seed: bytes, round: int) -> None:
        head = DOMAIN + round.to_bytes(8, "little")
        self._seed = hashlib.sha256(head + seed).digest() if seed else fresh_seed()

    def order(self, rows: int, epoch: int) -> npt.NDArray[np.int64]:
        """An order of all rows, any as likely as any other: they are sorted by 64 random bits each."""
        words = np.frombuffer(keystream(self._seed, 8 * rows, stream=epoch), dtype="<u8")
        return np.argsort(words, kind="stable")

    def generator(self, device: torch.device) -> torch.Generator:
        """A generator for dropout."""
        made = torch.Generator(device)
        made.manual_seed(int.from_bytes(keystream(self._seed, 8, stream=DROPOUT), "little") >> 1)
        return made
