"""Where an object came from, as far as the gate and a secure sum need to know it: which plans made it, from what.

Nodes of a sum cannot see one another's operands. What they can compare is the plan and a hash over its arguments: public
tensors by content, labelled ones by what they are ("features", "column:age", the result of such a plan call), never by
content or number of rows. Equal hashes mean the same function of the same parts of each node's dataset. An object that
pointer commands made or wrote into has no such account and is `DERIVED`: a client could have multiplied it by zero at all
nodes but one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from grid.ids import PlanId
from grid.policy.gate import POINTERS, Origin
from grid.tensors.buffers import short_dtype, to_frame


class Lineage(NamedTuple):
    """`origin` is the account for the gate. `part` is this object as a labelled argument, "" where nothing can be said.

    `arguments`: for the direct result of a plan call, the hash of its arguments, "" where one was derived.

    For an owner who releases by hand: how this object is named as an argument, `shown`, and what the plan calls behind it were
    given, the last one first (`node.calls`); None where that is too much to be read. Neither is part of a hash.

    A named tuple: one is made for every result of every plan call.
    """

    origin: Origin
    part: str = ""
    arguments: str = ""
    shown: str = ""
    calls: tuple[str, ...] | None = ()


Content = Callable[[int], bytes]

OWN = Lineage(POINTERS)
"""A value of the client's own, compared by content. It says nothing about an object with a label."""

DERIVED = Lineage(POINTERS)
"""Made or changed by pointer commands, or moved here."""


def dataset_part(part: str, column: str, shown: str = "") -> Lineage:
    """An opened part of a dataset, whole or blocks of it; which rows does not matter to what is done with them."""
    return Lineage(Origin(plans=frozenset()), f"column:{column}" if part == "column" else part, shown=shown)


def plan_results(
    plan: PlanId, inputs: Sequence[tuple[Tensor, Lineage | None]], count: int, content: Content | None = None
) -> list[Lineage]:
    """The lineages of the results of a plan call. An input's lineage is None where it has no label.

    `content`: see `arguments_hash`. What is made of nothing but inputs without a label has none either.
    """
    labelled = [lineage for _, lineage in inputs if lineage is not None]
    if not labelled:
        return [OWN] * count
    if any(lineage.origin.plans is None or not lineage.part for lineage in labelled):
        return [Lineage(Origin(plans=None, plan=plan))] * count
    arguments = arguments_hash(inputs, content)
    plans = frozenset([plan]).union(*(lineage.origin.plans or () for lineage in labelled))
    origin = Origin(plans=plans, plan=plan)
    return [Lineage(origin, f"plan:{plan}:{arguments}:{output}", arguments) for output in range(count)]


def arguments_hash(inputs: Sequence[tuple[Tensor, Lineage | None]], content: Content | None = None) -> str:
    """SHA-256 over a plan's arguments in order: those without a label by content, the others by what they are.

    `content` gives the `digest` of the argument of a number, where the caller may have it already.
    """
    whole = hashlib.sha256(b"grid plan arguments 2")
    for number, (value, lineage) in enumerate(inputs):
        if lineage is not None:
            encoded = b"part " + lineage.part.encode()
        else:
            encoded = b"tensor " + (digest(value) if content is None else content(number))
        whole.update(len(encoded).to_bytes(4, "little") + encoded)
    return whole.hexdigest()


def digest(value: Tensor) -> bytes:
    """SHA-256 over a tensor: dtype, shape, elements."""
    found = hashlib.sha256(f"{short_dtype(value.dtype)} {list(value.shape)} ".encode())
    found.update(to_frame(value, copy=False).data)
    return found.digest()
