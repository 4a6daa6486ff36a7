"""Where an object came from, as far as the gate and a secure sum need to know it: which plans made it, from what.

Nodes of a sum cannot see one another's operands. What they can compare is the plan and a hash over its arguments: public
tensors by content, labelled ones by what they are ("features", "column:age", the result of such a plan call), never by
content or number of rows. Equal hashes mean the same function of the same parts of each node's dataset. An object that
pointer commands made or wrote into has no such account and is `DERIVED`: a client could have multiplied it by zero at all
nodes but one.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

from torch import Tensor

from grid.ids import PlanId
from grid.policy.gate import POINTERS, Origin
from grid.tensors.buffers import to_frame


@dataclasses.dataclass(frozen=True, slots=True)
class Lineage:
    """`origin` is the account for the gate. `part` is this object as a labelled argument, "" where nothing can be said.

    `arguments`: for the direct result of a plan call, the hash of its arguments, "" where one was derived.
    """

    origin: Origin
    part: str = ""
    arguments: str = ""


OWN = Lineage(POINTERS)
"""A value of the client's own, compared by content. It says nothing about an object with a label."""

DERIVED = Lineage(POINTERS)
"""Made or changed by pointer commands, or moved here."""


def dataset_part(part: str, column: str) -> Lineage:
    """An opened part of a dataset, whole or blocks of it; which rows does not matter to what is done with them."""
    return Lineage(Origin(plans=frozenset()), f"column:{column}" if part == "column" else part)


def plan_results(plan: PlanId, inputs: Sequence[tuple[Tensor, Lineage | None]], count: int) -> list[Lineage]:
    """The lineages of the results of a plan call. An input's lineage is None where it has no label."""
    labelled = [lineage for _, lineage in inputs if lineage is not None]
    if any(lineage.origin.plans is None or not lineage.part for lineage in labelled):
        return [Lineage(Origin(plans=None, plan=plan))] * count
    arguments = arguments_hash(inputs)
    plans = frozenset([plan]).union(*(lineage.origin.plans or () for lineage in labelled))
    origin = Origin(plans=plans, plan=plan)
    return [Lineage(origin, f"plan:{plan}:{arguments}:{output}", arguments) for output in range(count)]


def arguments_hash(inputs: Sequence[tuple[Tensor, Lineage | None]]) -> str:
    """SHA-256 over a plan's arguments in order: those without a label by content, the others by what they are."""
    digest = hashlib.sha256(b"grid plan arguments 1")
    for value, lineage in inputs:
        if lineage is None:
            frame = to_frame(value, copy=False)
            head = f"tensor {frame.dtype} {list(frame.shape)}"
            content = hashlib.sha256(frame.data).digest()
        else:
            head = f"part {lineage.part}"
            content = b""
        encoded = head.encode()
        digest.update(len(encoded).to_bytes(4, "little") + encoded + content)
    return digest.hexdigest()
