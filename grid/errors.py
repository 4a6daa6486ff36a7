"""Every error that Grid raises on purpose, in one tree.

    GridError
    ├── LocalProtocolError        our own code broke the rules of a session
    ├── WireError                 bytes from a peer are not a message, or break the rules of a session
    ├── AuthenticationFailed      a card, signature, token or key does not hold
    │   └── ClockSkew             two clocks differ by more than five minutes
    ├── InvalidRequest            a request is well formed and makes no sense (wrong dtype, shape, name)
    │   ├── DatasetError          a data file or its description is wrong; names file, line or column
    │   └── OpNotSupported        an operation is not in the op table
    ├── NotFound                  no such node, dataset, object, plan
    ├── NodeUnavailable           the peer is offline or the connection to it was lost
    ├── DeadlineExceeded          the answer did not come in time
    ├── QuotaExceeded             a client asked for more memory, objects or rate than a node gives it
    ├── ReleaseDenied             the owner's rules do not let a value leave: rule, step, what to write instead
    │   └── BudgetExhausted       nothing is left of a limit that adds up over a dataset's life
    ├── PlanRejected              a plan failed validation, or a function could not be traced
    ├── ExecutionFailed           an operation raised; where that could tell something about rows, the text is fixed
    └── QuorumLost                a node that a joint computation needs is gone; names it

Each class has a stable `code`, which is what travels; `from_wire` rebuilds the class at the far end. `advice` says in general
what to do; the documentation lists it. `details` holds a few
plain values (a rule's name, a command's number) for programs; the message is for people. Neither ever holds data values,
keys, tokens or shares. Tracebacks stay on the machine that made them.
"""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from grid.display import REFUSED, html

Detail = str | int | float | bool

_OURS = (f"{Path(__file__).parent}/", "<frozen ")
_LIBRARY = sysconfig.get_paths()["stdlib"] + "/"
_BELOW_US = tuple(f"/site-packages/{name}/" for name in ("torch", "IPython", "ipykernel"))


class GridError(Exception):
    """Base of every error this package raises on purpose."""

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False
    advice: ClassVar[str] = (
        "Report it, with the log of the process that raised it: it is the base of the others, and bare only where "
        "something unforeseen happened."
    )

    def __init__(self, message: str, /, **details: Detail) -> None:
        # By position, so that a peer's details of any name can be passed on.
        super().__init__(message)
        self.message = message
        self.details: dict[str, Detail] = details

    def __reduce__(self) -> tuple[object, ...]:
        return (from_wire, (self.code, self.message, self.details))

    def _repr_html_(self) -> str:
        facts = [(name, value) for name, value in self.details.items()]
        return html(type(self).__name__, self.code, facts=[("what", self.message), *facts], accent=REFUSED)

    def _render_traceback_(self) -> list[str]:
        """How a notebook shows it: the user's own lines, what happened, and the rule with the way out."""
        frames = traceback.extract_tb(self.__traceback__)
        if not isinstance(self, LocalProtocolError):  # a bug of ours is found by our own lines
            frames = traceback.StackSummary.from_list([frame for frame in frames if _is_users(frame.filename)])
        lines = [f"  {line}" for text in traceback.format_list(frames) for line in text.rstrip().splitlines()]
        facts = [f"    {name + ':':9}{value}" for name, value in self.details.items() if value != ""]
        return [*lines, f"\x1b[1m{type(self).__name__}\x1b[0m: {self.message}", *facts]


class LocalProtocolError(GridError):
    """Our own code broke the rules of a session: a bug on this side."""

    code = "local-protocol"
    advice = "Report it: it is a bug of this program."


class WireError(GridError):
    """Bytes from a peer are not a message, or break the rules of a session."""

    code = "wire"
    advice = (
        "Check that both sides run versions that go together; if they do, the peer or the path between is broken or "
        "hostile."
    )


class AuthenticationFailed(GridError):
    """A card, signature, token or key does not hold."""

    code = "authentication"
    advice = (
        "Ask whoever holds the root key: for a new token, or whether this key was revoked. Never switch to --dev because "
        "of it."
    )


class ClockSkew(AuthenticationFailed):
    """Two clocks differ by more than five minutes; the message says by how much."""

    code = "clock-skew"
    advice = "Set the clock of the machine that the message names, best by NTP."


class InvalidRequest(GridError):
    """A request is well formed and makes no sense: wrong dtype, shape, name or state."""

    code = "invalid"
    advice = "Change the call as the message says; trying again as it stands gives the same."


class DatasetError(InvalidRequest):
    """A data file or its description is wrong; the message names file, line or column."""

    code = "dataset"
    advice = "Mend the file or its description where the message points, and start the node again."


class OpNotSupported(InvalidRequest):
    """An operation is not in the op table; the message says what to write instead where that is known."""

    code = "op-not-supported"
    advice = "Write it with other operations, which the message names where it knows them; the table of operations lists all."


class NotFound(GridError):
    """There is no such node, dataset, object or plan, or it is not this client's."""

    code = "not-found"
    advice = "Look at what there is: g.nodes, g.search(), ds.columns. Values of a lost session are gone; make them again."


class NodeUnavailable(GridError):
    """The peer is offline, or the connection to it was lost."""

    code = "unavailable"
    retryable = True
    advice = "Wait and try again; remote values of a lost session are gone, and their datasets are opened anew."


class DeadlineExceeded(GridError):
    """The answer did not come in time."""

    code = "deadline"
    retryable = True
    advice = "Try again, with a longer timeout= if the work takes long."


class QuotaExceeded(GridError):
    """A client asked for more memory, objects or rate than a node gives to one client."""

    code = "quota"
    advice = "Free values that are not needed (del x), or ask less often; the message says which limit of the node it is."


class ReleaseDenied(GridError):
    """The owner's rules do not let a value leave.

    Details: `rule` (the name of the rule), `step` (the operation that caused it, if one did), `instead` (what to write).
    """

    code = "release-denied"
    advice = "Compute what may leave, as details['instead'] says, or ask the owner for another policy."

    def __init__(self, message: str, /, **details: Detail) -> None:
        super().__init__(message, **details)
        self.explain()

    def explain(self) -> None:
        """Let Python show rule and way out below the message of a traceback."""
        for name in ("rule", "step", "instead"):
            if self.details.get(name):
                self.add_note(f"    {name + ':':9}{self.details[name]}")


class BudgetExhausted(ReleaseDenied):
    """Nothing is left of a limit that adds up over a dataset's life."""

    code = "budget"
    advice = (
        "Ask for fewer or smaller results, or the owner for a higher limit; it counts over the dataset's life and all "
        "clients."
    )


class PlanRejected(GridError):
    """A plan failed validation, or a function could not be traced. Details: `step`, `op` where one is to blame."""

    code = "plan-rejected"
    advice = "Change the line that the message names; it says what to write instead."


class ExecutionFailed(GridError):
    """An operation raised at the node. Details: `op`, and `step` or `command`."""

    code = "execution"
    advice = "Look at the operation and the line that the message names; values of private rows are never told."


class QuorumLost(GridError):
    """A node that a joint computation needs is gone. Details: `node`."""

    code = "quorum-lost"
    retryable = True
    advice = "Wait until the node that the message names is back and repeat the computation, or go on without it."


def _tree(cls: type[GridError]) -> Iterator[type[GridError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from _tree(child)


BY_CODE: Mapping[str, type[GridError]] = {cls.code: cls for cls in _tree(GridError)}


def from_wire(code: str, message: str, details: Mapping[str, Detail]) -> GridError:
    """The error that `code` stands for; a code of a newer version gives its base class, message kept."""
    error = BY_CODE.get(code, GridError)(message)
    error.details = dict(details)
    if isinstance(error, ReleaseDenied):
        error.explain()
    return error


def again(error: GridError) -> GridError:
    """A fresh instance to raise: one that is kept would collect the traceback, and with it the variables, of each raise."""
    return type(error)(error.message, **error.details)


def _is_users(filename: str) -> bool:
    """Whether a line of a traceback is the user's: not of this package, the standard library, or what lies in between."""
    inside = filename.startswith(_LIBRARY) and "/site-packages/" not in filename
    return not (inside or filename.startswith(_OURS) or any(name in filename for name in _BELOW_US))
