"""`Plan`: a function over tensors as data, which can be hashed, stored, sent, read by its owner, checked, and run anywhere.

    plan = grid.trace(function, *examples)
    plan.id, plan.code
    plan(*arguments)                 # local tensors: runs here; remote ones: runs where they are

A plan is made from a `Program` and adds to it only what a caller needs. It is immutable; what is worked out from it (id,
generated code, sizes of results) is kept on it.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from grid.display import counted, html
from grid.errors import InvalidRequest, NotFound
from grid.ids import PlanId
from grid.plans import checks, encoding, interpret, printing, shapes
from grid.plans.program import Program
from grid.plans.trees import paths, take, unflatten

__all__ = ["Plan", "PlanCost", "PlanTarget", "decode", "encode", "validate"]


class PlanTarget(ABC):
    """A tensor that lives elsewhere. Tracing uses its `shape` and `dtype` alone; a call of a plan goes where it is.

    `torch.Tensor` has a metaclass of its own, so a tensor class cannot inherit from this one: it has the method `run_plan`,
    or is given to `PlanTarget.register`.
    """

    @abstractmethod
    def run_plan(self, plan: Plan, leaves: Sequence[Any]) -> list[Tensor]:
        """Run `plan` where this tensor is, on `leaves`, some of which may be local; the results stay there."""

    @classmethod
    def __subclasshook__(cls, other: type) -> Any:
        if cls is not PlanTarget:
            return NotImplemented
        if any("run_plan" in base.__dict__ for base in other.__mro__):
            return True
        return NotImplemented


class PlanCost(NamedTuple):
    """Of one run on shares: rounds, the longest chain of messages; and bytes that each of the three nodes sends, on average."""

    rounds: int
    bytes_sent: int


class Plan(Program):
    """A validated program. Make one with `grid.trace`, `@grid.plan`, `Plan.load` or `decode`."""

    costing: ClassVar[Costing]
    """What `cost` asks; whoever knows says so (`grid.smpc.rehearsal`)."""

    examples: tuple[tuple[int, ...], ...] = ()
    """The shapes of the inputs that it was traced with, in this process; no part of the plan."""

    @classmethod
    def of(cls, program: Program, examples: Sequence[tuple[int, ...]] = ()) -> Plan:
        """The plan of a program. Raises `PlanRejected` unless it is valid."""
        validate(program)
        made = cls(**{name: getattr(program, name) for name in Program.__dataclass_fields__})
        object.__setattr__(made, "examples", tuple(examples))
        return made

    @cached_property
    def encoding(self) -> bytes:
        """The canonical bytes: what `save` writes, what travels, and what the id is made from."""
        return encoding.pack(self)

    @cached_property
    def id(self) -> PlanId:
        """SHA-256 of the encoding, in hex."""
        return PlanId(hashlib.sha256(self.encoding).hexdigest())

    @cached_property
    def code(self) -> str:
        """The program as text, to be read by people."""
        return printing.to_code(self)

    @property
    def constant_tensors(self) -> dict[str, Tensor]:
        """The constants in full, copies of them, by the names that `code` gives them: it shows only a digest of large ones."""
        return printing.constant_tensors(self)

    @cached_property
    def dry_runs(self) -> shapes.DryRuns:
        """What runs would cost and give, by sizes of inputs."""
        return shapes.DryRuns(self)

    @cached_property
    def _compiled(self) -> interpret.Compiled:
        return interpret.Compiled(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan to a file. It holds no code: loading it runs nothing. Raises `InvalidRequest` where that cannot be."""
        try:
            Path(path).write_bytes(self.encoding)
        except OSError as error:
            raise InvalidRequest(f"the plan {self.name} cannot be saved as {os.fspath(path)}: {error.strerror}") from None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan from a file. Raises `NotFound` for no file, `PlanRejected` for a file that holds no valid plan."""
        file = Path(path)
        if not file.is_file():
            raise NotFound(f"there is no plan file {file}")
        with file.open("rb") as stream:
            return decode(stream.read(encoding.MAX_PLAN_BYTES + 1))

    def leaves_of(self, args: tuple[Any, ...]) -> list[Any]:
        """The tensors among a call's arguments, in order. Raises `InvalidRequest`, saying why, for a call that does not fit."""
        if len(args) != len(self.parameters):
            raise InvalidRequest(f"the plan {self.name} takes {len(self.parameters)} arguments, {len(args)} came")
        leaves: list[Any] = []
        for name, tree, value in zip(self.parameters, self.takes.children, args, strict=True):
            leaves += take(tree, value, is_tensor, name)
        checks.check_inputs(self, leaves)
        return leaves

    def __call__(self, *args: Any) -> Any:
        """Run the plan. Results have the structure that the traced function returned.

        With local tensors it runs here, and its results carry no gradient: gradients are taken inside a plan. With a remote
        tensor among the arguments it runs where that is, and the results stay there.
        """
        return self.run_on(self.leaves_of(args))

    def run_on(self, leaves: Sequence[Any]) -> Any:
        """`__call__` for leaves that `leaves_of` gave."""
        target = next((leaf for leaf in leaves if isinstance(leaf, PlanTarget)), None)
        results = self._compiled(leaves) if target is None else target.run_plan(self, leaves)
        return unflatten(self.gives, iter(results))

    def cost(self, *args: Any, secret: str | Sequence[str] | None = None, **sizes: int) -> PlanCost:
        """What a run on secret shares costs, worked out without running it. Exact, but for plans that sort more than 128
        items: what that takes is partly chance.

        `args` are as for a call, and only their shapes count. Without them the sizes are those of the examples that the plan was
        traced with, or those given by the names of its free dimensions: `plan.cost(n0=128)`. `secret` names the parameters that
        are on shares; all of them are where it is left out. Raises `InvalidRequest`, and what the nodes would refuse the plan by.
        """
        shapes = [tuple(leaf.shape) for leaf in self.leaves_of(args)] if args else self._shapes(sizes)
        if args and sizes:
            raise InvalidRequest("cost takes arguments or sizes, not both: the arguments have sizes")
        named = set(self.parameters if secret is None else [secret] if isinstance(secret, str) else secret)
        if unknown := sorted(named.difference(self.parameters)):
            raise InvalidRequest(f"the plan {self.name} has no parameter {unknown[0]!r}; it has {', '.join(self.parameters)}")
        pairs = zip(self.parameters, self.takes.children, strict=True)
        return type(self).costing(self, shapes, [name in named for name, tree in pairs for _ in paths(tree, name)])

    def _shapes(self, sizes: Mapping[str, int]) -> list[tuple[int, ...]]:
        """The shapes of the inputs for these sizes of free dimensions, else for those of the examples."""
        free = {size for spec in self.inputs for size in spec.sizes if isinstance(size, str)}
        if unknown := sorted(set(sizes) - free):
            known = ", ".join(sorted(free)) or "none"
            raise InvalidRequest(f"the plan {self.name} has no free dimension {unknown[0]}; it has {known}")
        if not sizes and self.examples:
            return list(self.examples)
        if missing := sorted(free - set(sizes)):
            given = ", ".join(f"{name}=128" for name in missing)
            raise InvalidRequest(f"the plan {self.name} takes inputs of any {', '.join(missing)}: say which, plan.cost({given})")
        return [tuple(sizes[size] if isinstance(size, str) else size for size in spec.sizes) for spec in self.inputs]

    def __repr__(self) -> str:
        return f"<Plan {self.name} {self.id[:12]}: {self._size}>"

    def _repr_html_(self) -> str:
        return html(self.name, f"plan, {self._size}", facts=[("id", self.id)], code=self.code)

    @property
    def _size(self) -> str:
        return f"{counted(len(self.inputs), 'input')}, {counted(len(self.steps), 'step')}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)


Costing = Callable[[Plan, Sequence[tuple[int, ...]], Sequence[bool]], PlanCost]
"""The cost of a plan for inputs of these shapes, and whether each is secret."""


def is_tensor(value: object) -> bool:
    """Whether a value is a leaf of a plan's arguments: a tensor, here or elsewhere."""
    return isinstance(value, (Tensor, PlanTarget))


def encode(plan: Plan) -> bytes:
    """The canonical encoding; `plan.id` is its SHA-256."""
    return plan.encoding


def decode(data: bytes | bytearray | memoryview, max_bytes: int = encoding.MAX_PLAN_BYTES) -> Plan:
    """The plan in an encoding, validated. Raises `PlanRejected` for anything else; allocates a few times `data` at most."""
    return Plan.of(encoding.unpack(data, max_bytes))


def validate(plan: Program) -> None:
    """Raise `PlanRejected` unless every step may run: known operations, arguments of the right kinds, values defined once."""
    checks.validate(plan)
