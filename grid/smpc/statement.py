"""What a node says of its operand before any share of a secure sum is sent, and when a set of statements makes a sum.

Each node signs one `Statement` and sends it to all others. Everybody checks all of them with `check_cohort`, so that a sum
of one owner's secret with operands that hide nothing (zeros, a constant plan, another plan's result) is refused by every
honest node before its share leaves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack

from grid.errors import AuthenticationFailed, InvalidRequest, ReleaseDenied, WireError
from grid.ids import PeerId, PlanId, SumId

VERSION = 2
MAX_ROSTER = 256
MAX_ENCODED_BYTES = 64 << 10

Names = Mapping[PeerId, str]
"""How messages call the nodes; an id without a name is shown as it is."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One node's operand of one sum.

    `labelled`: the operand carries rows of a dataset. `own`: all these datasets are the node's own. `open`: the owner lets
    rows of all of them out, so that anybody can take the operand off the sum. `plan` and `arguments`
    say what computed it ("" for a value that is no direct result of a plan). `rows` is the number of rows of the datasets
    behind it, 0 without a label. `expiry` is wall time in seconds; `nonce` is fresh for each statement.
    """

    sum: SumId
    roster: tuple[PeerId, ...]
    node: PeerId
    plan: PlanId
    arguments: str
    shape: tuple[int, ...]
    fraction_bits: int
    rows: int
    labelled: bool
    own: bool
    open: bool
    expiry: float
    nonce: bytes

    def encode(self) -> bytes:
        """The bytes that are signed."""
        fields = [getattr(self, field.name) for field in dataclasses.fields(self)]
        packed: bytes = msgpack.packb([VERSION, *fields])
        return packed


def decode(data: bytes) -> Statement:
    """A statement from bytes whose signature has been verified; `WireError` for anything else."""
    if len(data) > MAX_ENCODED_BYTES:
        raise WireError("a sum announcement is too large")
    try:
        fields = msgpack.unpackb(data, use_list=False, strict_map_key=True, max_array_len=1024, max_map_len=0, max_ext_len=0)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise WireError("a sum announcement is not readable") from error
    if not isinstance(fields, tuple) or len(fields) != 14 or fields[0] != VERSION or not _well_typed(fields[1:]):
        raise WireError("a sum announcement has a wrong form")
    return Statement(**{field.name: value for field, value in zip(dataclasses.fields(Statement), fields[1:], strict=True)})


def _well_typed(fields: Sequence[Any]) -> bool:
    sum_id, roster, node, plan, arguments, shape, fraction_bits, rows, labelled, own, is_open, expiry, nonce = fields
    return (
        all(isinstance(text, str) and len(text) <= 128 for text in (sum_id, node, plan, arguments))
        and isinstance(roster, tuple)
        and len(roster) <= MAX_ROSTER
        and all(isinstance(peer, str) and len(peer) <= 128 for peer in roster)
        and isinstance(shape, tuple)
        and len(shape) <= 32
        and all(_is_count(size) for size in (*shape, fraction_bits, rows))
        and isinstance(labelled, bool)
        and isinstance(own, bool)
        and isinstance(is_open, bool)
        and isinstance(expiry, float)
        and isinstance(nonce, bytes)
        and len(nonce) == 16
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def check_roster(roster: Sequence[PeerId], me: PeerId) -> None:
    """`InvalidRequest` unless the roster is a set of nodes that `me` belongs to."""
    if not roster or len(roster) > MAX_ROSTER:
        raise InvalidRequest(f"a sum has from 1 to {MAX_ROSTER} nodes, not {len(roster)}")
    if len(set(roster)) != len(roster):
        raise InvalidRequest("a node appears twice in the roster of a sum; each node gives one operand")
    if me not in roster:
        raise InvalidRequest("this node is not in the roster of the sum that it is asked to join")


def check_statement(statement: Statement, sender: PeerId, mine: Statement, wall: float, names: Names) -> None:
    """Whether one peer's statement is about the same sum as `mine`. Raises `AuthenticationFailed` or `ReleaseDenied`."""
    name = names.get(sender, sender)
    if statement.node != sender or statement.sum != mine.sum:
        raise AuthenticationFailed(f"node {name} sent a sum announcement that is not its own or not of this sum")
    if statement.expiry < wall:
        raise AuthenticationFailed(f"the sum announcement of node {name} has expired")
    if statement.roster != mine.roster:
        raise _denied("sum.roster", f"node {name} was told another list of nodes for this sum", "the same roster at every node")
    if statement.shape != mine.shape or statement.fraction_bits != mine.fraction_bits:
        raise _denied(
            "sum.shape",
            f"node {name} has an operand of shape {statement.shape} with {statement.fraction_bits} fraction bits, "
            f"this node one of shape {mine.shape} with {mine.fraction_bits}",
            "operands of one shape, at one scale",
        )


def check_cohort(statements: Sequence[Statement], *, minimum: int, names: Names) -> None:
    """Whether statements of one sum, one of each node, may be added up. Raises `ReleaseDenied` with the rule that is broken.

    Operands without a label, and those of open datasets, need no cohort. As soon as there is another, at least `minimum`
    operands must not be of open datasets, and all operands must be results of one plan with the same public arguments on
    each node's own dataset.
    """
    if not any(statement.labelled and not statement.open for statement in statements):
        return
    members = sum(not statement.open for statement in statements)  # without a label is none either, which is refused below
    if members < minimum:
        raise _denied(
            "sum.cohort",
            f"a sum over datasets needs at least {minimum} nodes, this one has {members}; open datasets are not counted",
            f"a sum over {minimum} or more nodes' datasets that are not open",
        )
    first = statements[0]
    for statement in statements:
        name = names.get(statement.node, statement.node)
        if not (statement.labelled and statement.own and statement.rows > 0):
            raise _denied(
                "sum.label",
                f"the operand at node {name} is not computed from that node's own dataset, so the sum would show the others'",
                "the same plan on each node's dataset",
            )
        if not statement.plan or not statement.arguments:
            raise _denied(
                "sum.plan",
                f"the operand at node {name} is not the direct result of a plan on parts of a dataset",
                "grid.sum of results of one plan, called at each node on its features, targets or columns",
            )
        if statement.plan != first.plan:
            raise _denied("sum.plan", f"the operand at node {name} comes from another plan", "one plan at every node")
        if statement.arguments != first.arguments:
            raise _denied(
                "sum.arguments",
                f"the plan at node {name} was called with other public arguments",
                "the same tensors, and the same parts of the datasets, at every node",
            )


def _denied(rule: str, what: str, instead: str) -> ReleaseDenied:
    return ReleaseDenied(f"secure sum refused: {what} (rule {rule}). Write instead: {instead}.", rule=rule, instead=instead)
