"""Grid: private computation on data that stays where it is.

Names are loaded when they are first used: `import grid` and `grid --help` start without torch, and `import grid` changes
nothing in it. What may be imported from here stands in `EXPORTS`; everything else is internal and may change.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grid import testing as testing
    from grid.client import api
    from grid.client.blocking import connect as connect
    from grid.client.fixed_precision import fix_precision as fix_precision
    from grid.client.hooking import hook as hook
    from grid.client.hooking import unhook as unhook
    from grid.client.links import Link as Link
    from grid.client.sums import sum as sum
    from grid.federated.custom import CustomStrategy as CustomStrategy
    from grid.federated.local import Local as Local
    from grid.federated.losses import trace_losses as trace_losses
    from grid.federated.robust import Krum as Krum
    from grid.federated.robust import Median as Median
    from grid.federated.robust import TrimmedMean as TrimmedMean
    from grid.federated.schedules import ConstantSchedule as ConstantSchedule
    from grid.federated.schedules import CosineSchedule as CosineSchedule
    from grid.federated.schedules import StepSchedule as StepSchedule
    from grid.federated.spec import Stop as Stop
    from grid.federated.strategies import FedAdagrad as FedAdagrad
    from grid.federated.strategies import FedAdam as FedAdam
    from grid.federated.strategies import FedAvg as FedAvg
    from grid.federated.strategies import FedAvgM as FedAvgM
    from grid.federated.strategies import FedProx as FedProx
    from grid.federated.strategies import FedYogi as FedYogi
    from grid.plans.ir import Plan as Plan
    from grid.plans.optimizers import SGD as SGD
    from grid.plans.optimizers import Adam as Adam
    from grid.plans.optimizers import AdamW as AdamW
    from grid.plans.trace import plan as plan
    from grid.plans.trace import trace as trace

    aio = api

__version__ = "0.1.0"

ERRORS = (
    "AuthenticationFailed",
    "BudgetExhausted",
    "ClockSkew",
    "DatasetError",
    "DeadlineExceeded",
    "ExecutionFailed",
    "GridError",
    "InvalidRequest",
    "LocalProtocolError",
    "NodeUnavailable",
    "NotFound",
    "OpNotSupported",
    "PlanRejected",
    "QuorumLost",
    "QuotaExceeded",
    "ReleaseDenied",
    "WireError",
)

STRATEGIES = ("FedAdagrad", "FedAdam", "FedAvg", "FedAvgM", "FedProx", "FedYogi", "Krum", "Median", "TrimmedMean")

EXPORTS: dict[str, tuple[str, str]] = {
    **{name: ("grid.errors", name) for name in ERRORS},
    "Adam": ("grid.plans.optimizers", "Adam"),
    "AdamW": ("grid.plans.optimizers", "AdamW"),
    "aio": ("grid.client.api", ""),
    **{name: ("grid.federated.schedules", name) for name in ("ConstantSchedule", "CosineSchedule", "StepSchedule")},
    **{name: ("grid.federated.strategies", name) for name in STRATEGIES},
    "CustomStrategy": ("grid.federated.custom", "CustomStrategy"),
    "connect": ("grid.client.blocking", "connect"),
    "fix_precision": ("grid.client.fixed_precision", "fix_precision"),
    "hook": ("grid.client.hooking", "hook"),
    "Link": ("grid.client.links", "Link"),
    "Local": ("grid.federated.local", "Local"),
    "Stop": ("grid.federated.spec", "Stop"),
    "plan": ("grid.plans.trace", "plan"),
    "Plan": ("grid.plans.ir", "Plan"),
    "SGD": ("grid.plans.optimizers", "SGD"),
    "sum": ("grid.client.sums", "sum"),
    "testing": ("grid.testing", ""),
    "trace": ("grid.plans.trace", "trace"),
    "trace_losses": ("grid.federated.losses", "trace_losses"),
    "unhook": ("grid.client.hooking", "unhook"),
}
"""Public name -> (module, name in it); an empty name is the module itself."""

BESIDE = dict.fromkeys(("Plan", "plan", "trace", "trace_losses"), "grid.smpc.rehearsal")
"""Public name -> a module that is loaded with it: `Plan.cost` asks a layer above its own."""

PLANNED = {"DifferentialPrivacy": "jobs run with privacy=None, and updates leave only in sums under masks"}
"""Name that people look for -> what to do without it."""

__all__ = [*EXPORTS, "__version__"]


def __getattr__(name: str) -> Any:
    if name in PLANNED:
        raise AttributeError(f"grid.{name} is not there yet: {PLANNED[name]}")
    if name not in EXPORTS:
        raise AttributeError(f"module 'grid' has no attribute {name!r}; it has {', '.join(sorted(EXPORTS))}")
    module_name, attribute = EXPORTS[name]
    module = importlib.import_module(module_name)
    if name in BESIDE:
        importlib.import_module(BESIDE[name])
    value = vars(module)[attribute] if attribute else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
