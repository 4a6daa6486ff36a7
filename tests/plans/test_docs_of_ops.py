"""`docs/reference/ops.md` says something of every operation; that it is fresh is tested with the other pages."""

from __future__ import annotations

from grid.plans.docs import _BOUNDS, _TORCH, ops_page, reached_by
from grid.tensors.ops import OPS


def test_every_operation_is_there_and_tells_what_reaches_it() -> None:
    page = ops_page()
    for op in OPS.values():
        assert f"`{op.base}`" in page
        assert reached_by(op.base.rstrip("_")), op.name
        assert op.bounds == "outputs" or _BOUNDS[op.bounds]
    bases = {op.base.rstrip("_").removesuffix("_data").removesuffix("_backward") for op in OPS.values()}
    assert set(_TORCH) <= bases and set(_BOUNDS) == {op.bounds for op in OPS.values()}


def test_rows_tell_rule_bounds_and_where() -> None:
    page = ops_page()
    assert "| `add`, `add_` | `Scalar` `Tensor` | `torch.add` |  | yes |" in page
    assert "| `embedding` |  | `torch.embedding` | indices inside the table* | yes |" in page
    assert "| `rand` |  | `torch.rand` |  | pointer only |" in page
    assert "| `_softmax_backward_data` |  | gradients of `torch.softmax` |" in page
    assert "| `bincount` | Use `(x[:, None] == torch.arange(k)).sum(0)` |" in page
