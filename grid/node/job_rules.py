"""What an owner's policy says to a federated job: whether it may train on a dataset, and whether updates go out one by one.

Asked when a job is offered and before each of its rounds, so that a rule that was changed meanwhile counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from grid.errors import NotFound, ReleaseDenied
from grid.federated.local import Local, local_from_plain
from grid.federated.spec import JobSpec
from grid.node.datasets import Dataset
from grid.policy.rules import APPROVE, DENY


def check_datasets(spec: JobSpec, names: Iterable[str], datasets: Mapping[str, Dataset], node: str) -> None:
    """Raise `ReleaseDenied`, with the rule and what its owner could write, unless all of these may be trained on; `NotFound`."""
    wanted = list(names)
    for name in wanted:
        if name not in datasets:
            raise NotFound(f"there is no dataset {name[:100]!r} at {node}; it was renamed or taken away since it was found")
    local = local_from_plain(spec.local)
    for name in wanted:
        _check(spec, local, datasets[name], node)


def _check(spec: JobSpec, local: Local, dataset: Dataset, node: str) -> None:
    policy, where = dataset.policy, f"the dataset {dataset.name!r} at {node}"
    if policy.release == DENY:
        _deny(
            "release",
            f'{where} has release = "deny", so nothing that is learned from it leaves',
            'its owner could write release = "aggregate" in [policy]: then sums over nodes leave, under masks',
        )
    if policy.release == APPROVE:
        allowed = {plan for plan, arguments in policy.calls if arguments is None}
        if missing := [plan for plan in (spec.train, spec.evaluate) if plan not in allowed]:
            _deny(
                "allow",
                f'{where} has release = "approve", and the plan {missing[0]} of this job is not in its list',
                f'its owner could write allow = ["{spec.train}", "{spec.evaluate}"] in [policy], after reading both plans',
            )
    if dataset.rows < policy.min_rows:
        _deny(
            "min_rows",
            f"{where} has {dataset.rows} rows, fewer than its min_rows = {policy.min_rows}",
            "its owner could write a smaller min_rows in [policy]; or leave this dataset out",
        )
    if spec.rounds and local.batch_size < policy.min_rows:  # a schedule can make one batch the only one that counts
        _deny(
            "min_rows",
            f"a batch of this job has {local.batch_size} rows, fewer than the min_rows = {policy.min_rows} of {where}",
            "take a larger batch_size",
        )
    if spec.secure and policy.min_cohort is not None and spec.min_nodes < policy.min_cohort:
        _deny(
            "min_cohort",
            f"a round of this job needs {spec.min_nodes} nodes, and {where} takes part in sums of {policy.min_cohort} or more",
            f"min_nodes={policy.min_cohort}, with datasets at so many nodes; or its owner could write a smaller min_cohort",
        )
    if not spec.secure and not policy.may_update_singly:
        _deny(
            "updates",
            f'{where} has updates = "{policy.updates}", so its updates leave in sums over nodes alone, and this job has'
            " secure=False",
            'train with secure=True; or its owner could write updates = "single" in [policy], which lets the gateway see them',
        )


def _deny(rule: str, what: str, instead: str) -> None:
    raise ReleaseDenied(f"{what} (rule {rule}). Do instead: {instead}.", rule=rule, instead=instead)
