"""Functions and layers that a plan holds in another form than PyTorch has: the results and gradients are PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from plan_models import assert_same
from torch import Tensor, nn

from grid.errors import PlanRejected
from grid.plans.trace import trace

X, IMAGE, SERIES, VOLUME = (8, 6), (8, 4, 8, 8), (8, 3, 16), (8, 2, 8, 8, 8)
TABLE = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))


def data(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]))


CASES: dict[str, tuple[Callable[[Tensor], Any], tuple[int, ...]]] = {
    "Tensor.unfold": (lambda x: x.unfold(1, 3, 2), X),
    "F.unfold": (lambda x: F.unfold(x, (3, 2), dilation=2, padding=1, stride=2), IMAGE),
    "F.fold": (lambda x: F.fold(F.unfold(x, 3, padding=1, stride=2), (8, 8), 3, padding=1, stride=2), IMAGE),
    "pixel shuffle": (lambda x: F.pixel_shuffle(x, 2), IMAGE),
    "pixel unshuffle": (lambda x: F.pixel_unshuffle(x, 2), IMAGE),
    "channel shuffle": (lambda x: F.channel_shuffle(x, 2), IMAGE),
    "reflection": (lambda x: F.pad(x, (2, 1), "reflect"), SERIES),
    "replication": (lambda x: F.pad(x, (2, 1), "replicate"), SERIES),
    "padding": (lambda x: F.pad(x, (2, 1), value=3.0), SERIES),
    "cross": (lambda x: torch.linalg.cross(x[:, :3], x[:, 3:]), X),
    "bilinear": (lambda x: F.bilinear(x[:, :2], x[:, 2:5], torch.ones(4, 2, 3), torch.ones(4)), X),
    "variances": (lambda x: F.gaussian_nll_loss(x, x.detach() * 2, x.detach().exp(), full=True), X),
    "cov": (lambda x: torch.cov(x.T), X),
    "corrcoef": (lambda x: x.T.corrcoef(), X),
    "trace": (lambda x: (x.T @ x).trace(), X),
    "max_pool3d": (lambda x: F.max_pool3d(x, 2), VOLUME),
    "avg_pool3d": (lambda x: F.avg_pool3d(x, 3, stride=2, padding=1), VOLUME),
    "adaptive_avg_pool3d": (lambda x: F.adaptive_avg_pool3d(x, 2), VOLUME),
    "einsum": (lambda x: torch.einsum("bct,bdt->bcd", x, x), SERIES),
    "columns": (lambda x: x.tanh()[:, [0, 2, 2]], X),
    "determinant": (lambda x: torch.linalg.det(x.T @ x + torch.eye(6)), X),
    "normalize": (lambda x: F.normalize(x), X),
    "cosine": (lambda x: F.cosine_similarity(x, torch.ones(1, 6)), X),
    "smoothing": (lambda x: F.cross_entropy(x, torch.zeros(x.shape[0], dtype=torch.long), label_smoothing=0.1), X),
}


@pytest.mark.parametrize("name", CASES)
def test_results_and_gradients(name: str) -> None:
    function, shape = CASES[name]

    def with_gradient(x: Tensor) -> Any:
        result = function(x)
        return result, torch.autograd.grad((result * result.detach().cos()).sum(), x)

    plan = trace(with_gradient, data(*shape).requires_grad_())
    for rows in (2, 3, 33):
        x = data(rows, *shape[1:]).requires_grad_()
        assert_same(plan(x), with_gradient(x), 1e-4)


WHOLE: dict[str, Callable[[Tensor], Any]] = {
    "isin": lambda i: torch.isin(i, torch.tensor([1, 3])),
    "one_hot": lambda i: F.one_hot(i, 5),
    "count": lambda i: (i.reshape(-1, 1) == torch.arange(5)).sum(0),
    "bags of means": nn.EmbeddingBag.from_pretrained(TABLE),
    "bags of sums": nn.EmbeddingBag.from_pretrained(TABLE, mode="sum"),
    "bags of maxima": nn.EmbeddingBag.from_pretrained(TABLE, mode="max"),
    "short bags": nn.EmbeddingBag.from_pretrained(TABLE, padding_idx=2),
    "short bags of maxima": nn.EmbeddingBag.from_pretrained(TABLE, mode="max", padding_idx=-1),
    "weighted": lambda i: F.embedding_bag(i, TABLE, mode="sum", per_sample_weights=i / 2),
}


@pytest.mark.parametrize("name", WHOLE)
def test_functions_of_whole_numbers(name: str) -> None:
    def numbers(rows: int) -> Tensor:
        return torch.randint(0, 5, (rows, 4), generator=torch.Generator().manual_seed(rows))

    plan = trace(WHOLE[name], numbers(8))
    for rows in (1, 3, 33):
        assert_same(plan(numbers(rows)), WHOLE[name](numbers(rows)))


# ---------------------------------------------------------------- dropout


def kept(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, list[str]]:
    plan = trace(function, x[:8])
    torch.manual_seed(0)
    return plan(x), [step.op for step in plan.steps if "dropout" in step.op]


@pytest.mark.parametrize(
    "layer",
    [nn.Dropout(0.3), nn.Dropout(0.3, inplace=True), nn.Dropout1d(0.3), nn.Dropout2d(0.3), nn.Dropout3d(0.3)],
    ids=lambda layer: f"{type(layer).__name__}{'_' if layer.inplace else ''}",
)
def test_dropout_draws_one_mask_where_it_runs(layer: nn.Module) -> None:
    rank = {"Dropout1d": 1, "Dropout2d": 2, "Dropout3d": 3}.get(type(layer).__name__, 0)
    x = torch.ones(400, 5, *[3] * rank)
    result, ops = kept(layer, x)
    assert ops == ["aten.native_dropout.default"]
    flat = result.reshape(400, 5, -1)
    assert bool((flat == flat[:, :, :1]).all())  # whole channels
    assert set(flat.unique().tolist()) == {0.0, float(torch.tensor(1 / 0.7))}
    assert abs((flat[:, :, 0] == 0).float().mean() - 0.3) < 0.05
    assert trace(layer.eval(), x[:8]).steps == ()
    layer.train()


@pytest.mark.parametrize("layer", [nn.AlphaDropout(0.2), nn.FeatureAlphaDropout(0.2)], ids=lambda layer: type(layer).__name__)
def test_alpha_dropout_keeps_mean_and_variance(layer: nn.Module) -> None:
    result, ops = kept(layer, torch.randn(2000, 20, 2, generator=torch.Generator().manual_seed(0)))
    assert ops == ["aten.native_dropout.default"]
    assert abs(result.mean()) < 0.02 and abs(result.std() - 1) < 0.02


@pytest.mark.parametrize(
    ("module", "draws"),
    [
        (nn.LSTM(6, 4, num_layers=3, dropout=0.4, batch_first=True), 2),
        (nn.GRU(6, 4, num_layers=2, dropout=0.4, batch_first=True, bidirectional=True), 1),
        (nn.TransformerEncoderLayer(6, 2, 8, dropout=0.4, batch_first=True), 4),
    ],
    ids=lambda value: type(value).__name__,
)
def test_layers_with_dropout_inside(module: nn.Module, draws: int) -> None:
    def first(x: Tensor) -> Tensor:
        result = module(x)
        return result[0] if isinstance(result, tuple) else result

    x = torch.randn(8, 3, 6)
    plan = trace(first, x)
    assert sum("dropout" in step.op for step in plan.steps) == draws
    assert not torch.equal(plan(x), plan(x))
    module.eval()
    assert_same(trace(first, x)(x), first(x))


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda x: F.embedding_bag(x[:, 0].long(), TABLE, torch.arange(8)), "embedding_bag with offsets"),
        (lambda x: torch.cov(x.T, fweights=torch.ones(8, dtype=torch.long)), "torch.cov with weights"),
        (lambda x: nn.utils.rnn.pack_padded_sequence(x[:, :, None], [6] * 8, batch_first=True).data, "packed sequences"),
        (lambda x: F.unfold(x[None], 3), "without a batch dimension"),
    ],
)
def test_forms_that_are_not_there_say_what_to_use(function: Callable[[Tensor], Any], says: str) -> None:
    with pytest.raises(PlanRejected, match=says) as caught:
        trace(function, data(*X))
    assert "test_functions.py:" in caught.value.message
