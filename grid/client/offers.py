"""Values on shares that one client of a committee offers to another one: what the giver tells the taker, as a line of text."""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Sequence
from typing import NamedTuple

from grid.errors import InvalidRequest
from grid.ids import OFFERED, ObjectId, PeerId

MAX_ELEMENTS = 1 << 40
"""More than any committee computes on."""

_OFFER = re.compile(r"([a-z2-7]{26}):([0-9a-f]{1,16}):([a-z0-9]{2,4}):((?:\d{1,12}(?:x\d{1,12}){0,15})?)\Z")


class Offer(NamedTuple):
    """Who offers, under which name, and what kind of tensor."""

    client: PeerId
    name: ObjectId
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def fresh(cls, client: PeerId, dtype: str, shape: Sequence[int]) -> Offer:
        """A new one: nobody can guess its name, and no counted id meets it."""
        return cls(client, ObjectId(OFFERED + secrets.randbelow(OFFERED)), dtype, tuple(shape))

    @classmethod
    def parse(cls, text: str) -> Offer:
        """What `str` gave. Raises `InvalidRequest`."""
        match = _OFFER.match(text)
        if match is None:
            raise InvalidRequest("this is no offer; committee.offer(...) of the other client gives its text")
        client, name, dtype, sizes = match.groups()
        shape = tuple(map(int, filter(None, sizes.split("x"))))
        if math.prod(shape) > MAX_ELEMENTS or not OFFERED <= int(name, 16) < 2 * OFFERED:
            raise InvalidRequest("this text is no offer that anybody has made: its name or its shape cannot be")
        return cls(PeerId(client), ObjectId(int(name, 16)), dtype, shape)

    def __str__(self) -> str:
        return f"{self.client}:{self.name:x}:{self.dtype}:{'x'.join(map(str, self.shape))}"
