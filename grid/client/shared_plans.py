"""Plans and modules that run on shares: what a committee does for `trio.run`, before anything is sent.

A plan is prepared here as the parties prepare it, so what they would refuse is refused at the line that asks for it. What a run
would do to values can be tried (`check`, `trace`) on the client's own ones where they are at hand, the mock of a dataset, else
standard normal numbers.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grid.client.examples import Examples
from grid.client.fixed_precision import plain
from grid.client.shared import SharedTensor
from grid.client.tensors import RemoteTensor
from grid.client.traces import Trace
from grid.errors import InvalidRequest
from grid.plans.checks import leaf_names
from grid.plans.ir import Plan
from grid.plans.trace import TracedFunction
from grid.plans.trees import unflatten
from grid.smpc import rehearsal
from grid.smpc.programs import UNLIMITED, Given, Preparations, Prepared
from grid.smpc.tracing import measured

MAX_NAMED = 20
"""Operations, or arguments, that one error names."""

_TAKEN = "standard normal ones, or 0 and 1 for integers, took their place"
_POSITIVE = "standard normal ones without their signs, or 0 and 1 for integers, took their place"

log = logging.getLogger(__name__)


class Runs:
    """The plans that one committee has been asked to run."""

    def __init__(self) -> None:
        self._preparations = Preparations(UNLIMITED)
        self._modules: weakref.WeakKeyDictionary[torch.nn.Module, dict[tuple[bool, ...], TracedFunction]]
        self._modules = weakref.WeakKeyDictionary()
        self.examples = Examples()
        """For `check` and `trace`, by the id of the object on shares."""

    def plan_of(self, what: Any, args: tuple[Any, ...]) -> tuple[Plan, list[Any]]:
        """The plan that runs `what`, a plan, a traced function or a module, on these arguments; and its leaves."""
        if isinstance(what, torch.nn.Module):
            args = (tensors_of(what), *args)
            what = self._traced(what)
        if isinstance(what, TracedFunction):
            what = what.trace_for(*args)
        if not isinstance(what, Plan):
            raise InvalidRequest(f"run takes a plan (grid.trace, @grid.plan) or a module, not {type(what).__name__}")
        return what, [plain(leaf) for leaf in what.leaves_of(args)]

    def _traced(self, module: torch.nn.Module) -> TracedFunction:
        """A module as a function of its parameters and buffers, traced once for each geometry of its inputs."""
        modes = tuple(part.training for part in module.modules())
        known = self._modules.setdefault(module, {})
        if modes not in known:
            known[modes] = _function_of(weakref.ref(module))
        return known[modes]

    def prepared(self, plan: Plan, leaves: Sequence[Any]) -> Prepared:
        """The plan for these leaves. Raises what the parties would refuse it by, with the user's line."""
        return self._preparations.of(plan, [Given(tuple(leaf.shape), leaf.dtype, is_secret(leaf)) for leaf in leaves])

    def check(self, plan: Plan, leaves: Sequence[Any]) -> Sequence[Tensor | None]:
        """Try the plan in the clear. Raises `InvalidRequest` that names the operations which could go wrong on shares. Gives its
        results, as examples for what comes of them, where no argument was made up."""
        inputs, note = self._examples(plan, leaves)
        prepared = self.prepared(plan, leaves)
        trial = rehearsal.tried(prepared, inputs)
        if trial.doubts and note:  # roots and logarithms of numbers made up: an optimizer's state has squares
            again, positive = self._examples(plan, leaves, positive=True)
            other = rehearsal.tried(prepared, again)
            if not other.doubts:
                trial, note = other, positive
        if trial.doubts:
            shown = _shortened(trial.doubts, "\n  ")
            raise InvalidRequest(
                f"on values like these, operations of the plan {plan.name} could go wrong on shares"
                f" (docs/reference/secure-ops.md says what each is right for):\n  {shown}\n"
                f"Scale the data or the weights, or divide by a size before a sum{'; ' if note else ''}{note}",
                operations=len(trial.doubts),
            )
        if note:
            log.warning("the plan %s was checked, but %s", plan.name, note)
            return ()
        return trial.results

    def trace(self, plan: Plan, leaves: Sequence[Any]) -> Trace:
        """Run the plan by three parties in this process, and measure each of its operations."""
        inputs, note = self._examples(plan, leaves)
        whole = measured(self.prepared(plan, leaves), inputs)
        return Trace.of(plan.name, whole, unflatten(plan.gives, iter(whole.results)), note)

    def _examples(self, plan: Plan, leaves: Sequence[Any], *, positive: bool = False) -> tuple[list[Tensor], str]:
        """Local values in place of the inputs, and which of them are made up."""
        examples = [self._example(leaf) for leaf in leaves]
        unknown = [name for name, one in zip(leaf_names(plan), examples, strict=True) if one is None]
        note = f"no values are at hand for {_shortened(unknown, ', ')}: {_POSITIVE if positive else _TAKEN}" if unknown else ""
        made = [_made_up(leaf) if one is None else one for leaf, one in zip(leaves, examples, strict=True)]
        return [made[k].abs() if one is None and positive else made[k] for k, one in enumerate(examples)], note

    def _example(self, leaf: Any) -> Tensor | None:
        """A local value in place of an input: itself, if it is public. None where none is at hand."""
        if not is_secret(leaf):
            return leaf.detach()  # type: ignore[no-any-return]
        made = leaf._mock if is_at_a_node(leaf) else self.examples.get(leaf._handle.object_id)
        known = None if made is None else made()
        if known is not None and known.dtype == leaf.dtype:
            if known.shape == leaf.shape:
                return known.detach()
            if known.dim() and len(known) and known.shape[1:] == leaf.shape[1:]:  # a mock has fewer rows than a large dataset
                return known.detach()[torch.arange(len(leaf)) % len(known)]
        return None


def _made_up(leaf: Any) -> Tensor:
    if leaf.dtype.is_floating_point:
        return torch.randn(leaf.shape, dtype=torch.float64).to(leaf.dtype)
    return torch.randint(0, 2, leaf.shape).to(leaf.dtype)


def _shortened(names: Sequence[str], between: str) -> str:
    """MAX_NAMED of them, and how many more there are."""
    more = [f"and {len(names) - MAX_NAMED} more"] if len(names) > MAX_NAMED else []
    return between.join([*names[:MAX_NAMED], *more])


def is_secret(leaf: Any) -> bool:
    """Whether an argument is on shares, or will be."""
    return isinstance(leaf, RemoteTensor)


def is_at_a_node(leaf: Any) -> bool:
    """Whether it must be shared first."""
    return isinstance(leaf, RemoteTensor) and not isinstance(leaf, SharedTensor)


def tensors_of(module: torch.nn.Module) -> dict[str, Tensor]:
    """A module's parameters and buffers by name, each once."""
    return dict((*module.named_parameters(), *module.named_buffers()))


def _function_of(module: weakref.ref[torch.nn.Module]) -> TracedFunction:
    def function(tensors: dict[str, Tensor], *args: Any) -> Any:
        found = module()
        assert found is not None  # whoever calls has it
        return torch.func.functional_call(found, tensors, args)

    found = module()
    function.__name__ = type(found).__name__
    return TracedFunction(function)
