"""A write counts from before it happens: whatever fails on the way, what it may have reached is mixed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from grid.errors import ExecutionFailed, QuotaExceeded
from grid.policy import labels as labels_module
from grid.policy.labels import Labels
from grid.policy.memory import LabelledMemory
from grid.tensors.ops import lookup
from grid.tensors.rows import Space

ROWS = 20


def run(labels: Labels, name: str, *args: Any, **kwargs: Any) -> list[Tensor]:
    return labels.run(lookup(f"aten.{name}"), args, kwargs)


def full(*_: Any, **__: Any) -> Any:
    raise QuotaExceeded("no memory for labels")


def write_fails(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LabelledMemory, "_write", full)


def story_fails(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(labels_module, "_story", full)


def kernel_fails_at_its_end(patch: pytest.MonkeyPatch) -> None:
    def flatten(result: Any) -> Any:
        raise RuntimeError("after the kernel has run")

    patch.setattr(labels_module, "flatten", flatten)


@pytest.mark.parametrize("breaks", [write_fails, story_fails, kernel_fails_at_its_end])
def test_every_target_and_every_view_is_mixed_after_a_failure(
    breaks: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = Labels(strict=True)
    x = labels.enter(torch.ones(ROWS, 3), labels.dataset_type("d", ROWS, (ROWS, 3)))
    targets = [labels.enter(torch.zeros(ROWS, 3)) for _ in range(3)]
    views = [run(labels, "slice.Tensor", target, 0, 0, 2)[0] for target in targets]
    with monkeypatch.context() as patch:
        breaks(patch)
        with contextlib.suppress(QuotaExceeded):  # a kernel that fails on rows does so silently
            run(labels, "_foreach_add_.List", targets, [x, x, x])
    assert all(bool((target == 1).all()) for target in targets), "the kernel has run"
    for value in (*targets, *views):
        assert labels.type_of(value).mixed is not None and labels.type_of(value).datasets == ("d",)


def test_without_memory_even_for_that_nothing_can_be_done_with_what_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = Labels(strict=True)
    x = labels.enter(torch.ones(ROWS), labels.dataset_type("d", ROWS, (ROWS,)))
    target = labels.enter(torch.zeros(ROWS))
    with monkeypatch.context() as patch:
        patch.setattr(LabelledMemory, "_write", full)
        with pytest.raises(QuotaExceeded):
            run(labels, "add_.Tensor", target, x)
        patch.setattr(Space, "taint", full)
        patch.setattr(Space, "unknown", full)
        for look in (lambda: labels.type_of(target), lambda: run(labels, "clone.default", target), lambda: labels.spoilt(target)):
            with pytest.raises(QuotaExceeded):
                look()
    assert labels.type_of(target).mixed is not None


def test_a_failure_among_the_clients_own_values_is_told_and_leaves_them_unlabelled() -> None:
    labels = Labels(strict=True)
    target = labels.enter(torch.zeros(3))
    with pytest.raises(ExecutionFailed, match="out of range"):
        run(labels, "index_add_.default", target, 0, labels.enter(torch.tensor([9])), labels.enter(torch.ones(1)))
    assert not labels.type_of(target).labelled and labels.spoilt(target) is None


def test_what_stands_in_for_a_failed_result_looks_like_it() -> None:
    labels = Labels(strict=True)
    rows = labels.enter(torch.arange(float(ROWS)), labels.dataset_type("d", ROWS, (ROWS,)))
    (index,) = run(labels, "_to_copy.default", rows, dtype=torch.int64)
    small, large = (labels.enter(torch.ones(size, 2, dtype=torch.float64)) for size in (2, ROWS))
    (bad,), (good,) = (run(labels, "embedding.default", table, index) for table in (small, large))
    assert labels.type_of(bad) == labels.type_of(good) and labels.spoilt(good) is None
    assert (bad.shape, bad.dtype, bad.stride()) == (good.shape, good.dtype, good.stride()) and not bad.any()
    (target,) = run(labels, "clone.default", good)
    (view,) = run(labels, "t.default", target)
    run(labels, "mul_.Tensor", target, bad)
    for value in (target, view, *run(labels, "sum.default", view)):
        assert labels.spoilt(value) is labels.spoilt(bad) is not None
