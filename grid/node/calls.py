"""What a plan was called with, as text for an owner who approves releases by hand.

    call 5e0c9a41b7d2f386 of the plan 1f0c...
        x: features of the dataset 'patients'
        threshold: the client's own f4[] = 0.19

The client's own values decide what a plan does as much as its code: small ones are shown, larger ones by digest and bounds.
Nothing here shows a value of a dataset, or what was made of one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from torch import Tensor

from grid.node.lineage import Lineage
from grid.plans.checks import leaf_names
from grid.plans.ir import Plan
from grid.plans.printing import values_text
from grid.tensors.buffers import short_dtype, to_frame

SHOWN_ELEMENTS = 16
"""Elements of a client's own value that is written out."""

MAX_CALLS = 50
MAX_CALL_LETTERS = 20_000
"""What is told of one result: calls, and letters of each. Beyond, it is too much to be read, and to be kept."""

MAX_SESSION_LETTERS = 32_000_000
"""Letters that one session's calls may take, each counted when it is made."""


class Calls:
    """The account of one session's plan calls."""

    def __init__(self) -> None:
        self._letters = 0

    def told(self, lineages: Sequence[Lineage], plan: Plan, inputs: Sequence[tuple[Tensor, Lineage | None]]) -> list[Lineage]:
        """The lineages of a call's results, with what it was called with, and what made its arguments."""
        body = "".join(
            f"    {name}: {_argument(value, lineage)}\n" for name, (value, lineage) in zip(leaf_names(plan), inputs, strict=True)
        )
        call = f"call {hashlib.sha256(f'{plan.id} {body}'.encode()).hexdigest()[:16]} of the plan {plan.id}"
        before: dict[str, None] = {}
        known = True
        for _, lineage in inputs:
            known = known and (lineage is None or lineage.calls is not None)
            before.update(dict.fromkeys((lineage.calls or ()) if lineage is not None else ()))
        text = f"{call}\n{body}"
        self._letters += len(text)
        fits = len(text) <= MAX_CALL_LETTERS and len(before) < MAX_CALLS and self._letters <= MAX_SESSION_LETTERS
        calls = (text, *before) if known and fits else None
        return [one._replace(shown=f"result {at} of {call}", calls=calls) for at, one in enumerate(lineages)]


def _argument(value: Tensor, lineage: Lineage | None) -> str:
    if lineage is not None:
        return lineage.shown
    own = f"the client's own {short_dtype(value.dtype)}[{', '.join(map(str, value.shape))}]"
    if value.numel() <= SHOWN_ELEMENTS:
        return f"{own} = {values_text(value)}"
    digest = hashlib.sha256(to_frame(value, copy=False).data).hexdigest()
    bounds = "" if value.is_complex() else f", from {values_text(value.amin())} to {values_text(value.amax())}"
    return f"{own}{bounds}, sha256={digest!r}"
