"""Labels on real programs: what comes out as an aggregate, what does not and why, and what becomes of shared memory."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from labelled import Labelled, labelled, module, rows_of
from torch import Tensor, nn

from grid.errors import ExecutionFailed, InvalidRequest, LocalProtocolError, QuotaExceeded
from grid.policy.labels import PRIVATE_FAILURE, Labels
from grid.tensors.ops import lookup
from grid.tensors.rows import CONST, FREE, Order

N, D = 40, 6


@pytest.fixture
def labels() -> Labels:
    return Labels(strict=True)


class Data:
    """40 rows: features, whole-number classes, images; and the same plain."""

    def __init__(self, labels: Labels) -> None:
        torch.manual_seed(0)
        self.labels = labels
        self.plain = {"x": torch.randn(N, D), "y": torch.randint(0, 3, (N,)), "image": torch.randn(N, 3, 8, 8)}
        self.x, self.y, self.image = (rows_of(labels, value) for value in self.plain.values())

    def own(self, value: Tensor) -> Labelled:
        return labelled(self.labels, value)


@pytest.fixture
def data(labels: Labels) -> Data:
    return Data(labels)


IDIOMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda x, y: x.sum(0),
    "sum of the transpose": lambda x, y: x.T.sum(1),
    "mean of everything": lambda x, y: x.mean(),
    "variance": lambda x, y: x.var(0),
    "standardised": lambda x, y: (((x - x.mean(0)) / x.std(0)) ** 4).mean(0),
    "covariance": lambda x, y: torch.cov(x.T),
    "correlation": lambda x, y: torch.corrcoef(x.T),
    "ridge": lambda x, y: torch.linalg.solve(x.T @ x + torch.eye(D), x.T @ y.float()),
    "residual gradient": lambda x, y: x.T @ (torch.sigmoid(x @ x.mean(0)) - y.float()) / N,
    "half": lambda x, y: x[: N // 2].mean(0),
    "accuracy": lambda x, y: (x.argmax(1) == y).float().mean(),
    "histogram by edges": lambda x, y: (x[:, :1] > torch.linspace(-2, 2, 5)).float().sum(0),
    "histogram": lambda x, y: torch.histc(x[:, 0], 4, -2, 2),
    "group sums": lambda x, y: (y[:, None] == torch.arange(3)).float().T @ x,
    "group sums by scatter": lambda x, y: torch.zeros(3, D).index_add(0, y, x),
    "where": lambda x, y: torch.where(y[:, None] > 0, x, torch.zeros_like(x)).sum(0),
    "folds": lambda x, y: x[1::4].mean(0),
    "ones made at the node": lambda x, y: (torch.ones_like(x[:, :1]).T @ x)[0],
    "a function of aggregates": lambda x, y: x.mean(0).sort().values.cumsum(0),
    "chosen rows": lambda x, y: x[torch.arange(20)].sum(0),
    "cross entropy": lambda x, y: F.cross_entropy(x[:, :3], y),
}


@pytest.mark.parametrize("idiom", IDIOMS)
def test_an_aggregate_has_no_rows_left(data: Data, idiom: str) -> None:
    function = IDIOMS[idiom]
    out = function(data.x, data.y)
    assert isinstance(out, Labelled)
    torch.testing.assert_close(out.inner, function(data.plain["x"], data.plain["y"]))
    kind = out.type_
    assert kind.mixed is None and kind.axis("d") is None and kind.datasets == ("d",)
    assert kind.rows("d") >= 10
    assert kind.story.blame["d"].startswith("step ")


ONE_HOT = F.one_hot(torch.tensor(7), N).float()

REFUSED: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str, str]] = {
    "a mask": (lambda x, y: ONE_HOT @ x, "varies along the row axis", "x.sum(0)"),
    "weights": (lambda x, y: (x * ONE_HOT[:, None]).sum(0), "varies along the row axis", "x[index]"),
    "an aggregate as a mask": (lambda x, y: (x.sum() * 0 + ONE_HOT) @ x, "varies along the row axis", ""),
    "maximum": (lambda x, y: x.max(0).values, "one row's value", "counts by public edges"),
    "median": (lambda x, y: x.median(0).values, "one row's value", "counts"),
    "top rows": (lambda x, y: x.topk(1, 0).values, "compares rows by position", ""),
    "infinity norm": (lambda x, y: torch.linalg.vector_norm(x, torch.inf, 0), "infinity norm", "counts"),
    "histogram without range": (lambda x, y: torch.histc(x[:, 0], 4), "smallest and the largest", "torch.histc"),
    "histogram of an empty range": (lambda x, y: torch.histc(x[:, 0], 4, 1, 1), "smallest and the largest", "torch.histc"),
    "softmax over rows": (lambda x, y: x.softmax(0).sum(0), "compares rows", ""),
    "reversed": (lambda x, y: (x * x.flip(0)).sum(0), "compares rows", ""),
    "a kernel matrix": (lambda x, y: (x @ x.T).sum(), "every other row", "random Fourier features"),
    "pairs": (lambda x, y: (x[:, None] - x[None]).abs().sum(), "every other row", ""),
    "lagged": (lambda x, y: (x[1:] * x[:-1]).sum(), "different rows", "select the same rows"),
    "other rows": (lambda x, y: (x[:20] * x[20:]).sum(), "different rows", ""),
    "repeated rows": (lambda x, y: x[torch.tensor([3, 3])].sum(0), "selected twice", "distinct rows"),
    "rows by private values": (lambda x, y: x[y].sum(0), "private values", "torch.where"),
    "flattened rows": (lambda x, y: x.T.reshape(-1)[:5].sum(), "merged with another", "select before"),
    "cut rows": (lambda x, y: x.view(8, 5, D).sum(1), "cuts the row axis", "keep the row axis whole"),
    "extra rows": (lambda x, y: torch.cat([x, torch.ones(2, D)]).sum(0), "something else were put", "reduce the rows first"),
    "rows by position": (lambda x, y: torch.zeros(N, D).index_put((torch.arange(N),), x), "written by index", "torch.where"),
    "columns filled in": (lambda x, y: _filled(x), "another view", "torch.stack"),
    "rows as time": (lambda x, y: x.cumsum(0)[-1], "compares rows", ""),
    "rows as classes": (lambda x, y: F.nll_loss(x.T, torch.zeros(D).long()), "classes hold rows", "(rows, classes)"),
    "client labels": (lambda x, y: F.cross_entropy(x[:, :3], torch.zeros(N, dtype=torch.long)), "varies along", ""),
    "heavy dropout": (lambda x, y: torch.native_dropout(x, 0.9, True)[0].sum(0), "above 0.5", "p <= 0.5"),
    "a random mask": (lambda x, y: (x * torch.rand_like(x)).sum(0), "varies along", ""),
}


def _filled(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, 0] = x[:, 1]
    return out.sum(0)


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_shown_is_mixed_and_says_what_to_write(data: Data, case: str) -> None:
    function, why, instead = REFUSED[case]
    out = function(data.x, data.y)
    assert isinstance(out, Labelled)
    reason = out.type_.mixed
    assert reason is not None and why in reason.text and instead in reason.instead
    assert "aten." in out.type_.story.mixed
    assert out.type_.public_axis() == -2


def test_saved_statistics_of_the_clients_own_do_not_pick_a_row(data: Data) -> None:
    """The gradient of a layer norm's weight is a sum over rows of g (x - mean) / std: a one-hot 1/std would pick one."""
    pick = ONE_HOT.view(N, 1)
    saved = [data.own(torch.zeros(N, 1)), data.own(pick)]
    mask = [False, True, False]
    made = torch.ops.aten.native_layer_norm_backward(data.x, data.x, [D], *saved, data.own(torch.ones(D)), None, mask)
    assert made[1].type_.mixed is not None


def test_a_dropout_mask_of_constants_is_not_constant(data: Data) -> None:
    """Else `dropout(ones) @ x` would be a sum over few rows, of the node's choice but visible."""
    mask = torch.native_dropout(torch.ones_like(data.x[:, 0]), 0.5, True)[0]
    assert mask.type_.dims == (((N, FREE),),)
    assert (mask @ data.x).type_.mixed is not None


def test_a_chain_of_dropouts_may_not_leave_one_row(data: Data) -> None:
    thinned = data.x
    kinds = []
    for _ in range(5):
        thinned = torch.native_dropout(thinned, 0.5, True)[0]
        kinds.append(thinned.sum(0).type_)
    assert kinds[0].mixed is None
    assert kinds[-1].mixed is not None and "dropout leaves too few" in kinds[-1].mixed.text
    assert torch.native_dropout(data.x[:10], 0.5, True)[0].sum(0).type_.mixed is not None
    once = torch.native_dropout(data.x, 0.5, True)[0]
    assert (once * once * once).sum(0).type_.mixed is None, "one mask stays one mask"


def test_the_dropout_mask_is_secret_fresh_and_fair(labels: Labels) -> None:
    x = labels.enter(torch.ones(200, 500))
    op = lookup("aten.native_dropout.default")
    (first, mask), (second, _) = labels.run(op, [x, 0.25, True], {}), labels.run(op, [x, 0.25, True], {})
    assert not torch.equal(first, second)
    assert torch.equal(first, mask / 0.75)
    assert abs(float(mask.float().mean()) - 0.75) < 0.01
    assert torch.equal(labels.run(op, [x, 0.25, False], {})[0], x)
    assert labels.run(op, [x, 1.0, True], {})[0].sum() == 0
    fixed = Labels(random_bytes=lambda count: b"\xff" * count)
    assert fixed.run(op, [fixed.enter(torch.ones(3)), 0.5, True], {})[0].tolist() == [2, 2, 2]


# ---------------------------------------------------------------- per-row losses


MODELS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "linear": (lambda: nn.Linear(D, 3), True),
    "layer norm": (lambda: nn.Sequential(nn.Linear(D, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 3)), True),
    "batch norm": (lambda: nn.Sequential(nn.Linear(D, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)), False),
}


@pytest.mark.parametrize("name", MODELS)
def test_blame_is_empty_while_each_slice_depends_on_its_row_alone(data: Data, name: str) -> None:
    make, independent = MODELS[name]
    losses = F.cross_entropy(module(data.labels, make())(data.x), data.y, reduction="none")
    kind = losses.type_
    assert kind.mixed is None and kind.axis("d") == 0
    assert (not kind.form.blame) == independent
    if not independent:
        assert "batch_norm" in kind.story.blame["d"]
    assert losses.mean().type_.story.blame["d"] != ""


def test_batch_norm_in_evaluation_is_a_map(data: Data) -> None:
    losses = module(data.labels, nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval())(data.image).sum((1, 2, 3))
    assert losses.type_.mixed is None and not losses.type_.form.blame


def train(model: nn.Module, x: Tensor, y: Tensor, optimizer: Callable[..., torch.optim.Optimizer]) -> None:
    opt = optimizer(model.parameters())
    for _ in range(3):
        opt.zero_grad()
        F.cross_entropy(model(x), y).backward()
        opt.step()


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd with momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "lists of tensors": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 3)),
    "cnn": lambda: nn.Sequential(
        *(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)),
    ),
    "group norm": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3)),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_trained_model_is_torchs_and_an_aggregate(data: Data, network: str, optimizer: str) -> None:
    torch.manual_seed(1)
    plain = NETWORKS[network]()
    remote = module(data.labels, NETWORKS[network]())
    for own, same in zip(remote.state_dict().values(), plain.state_dict().values(), strict=True):
        own.inner.copy_(same)
    train(plain, data.plain["image"], data.plain["y"], OPTIMIZERS[optimizer])
    train(remote, data.image, data.y, OPTIMIZERS[optimizer])
    for (name, own), same in zip(remote.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(own.inner, same, rtol=1e-4, atol=1e-5)
        if name != "1.num_batches_tracked":
            assert own.type_.mixed is None and own.type_.axis("d") is None and own.type_.rows("d") == N, name


def test_attention_and_embedding_learn_per_row(data: Data) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.mix, self.out = nn.Embedding(3, 8), nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            h = self.table(tokens)
            return self.out(self.mix(h, h, h, need_weights=False)[0].mean(1))

    net = module(data.labels, Net())
    losses = F.cross_entropy(net((data.x > 0).long()), data.y, reduction="none")
    assert losses.type_.mixed is None and not losses.type_.form.blame
    losses.sum().backward()
    assert all(p.grad.type_.mixed is None and p.grad.type_.axis("d") is None for p in net.parameters())


# ---------------------------------------------------------------- memory


def run(labels: Labels, name: str, *args: object, where: str = "", **kwargs: object) -> list[Tensor]:
    return labels.run(lookup(f"aten.{name}"), list(args), dict(kwargs), where)


def test_a_write_of_rows_reaches_every_view(data: Data) -> None:
    labels, row = data.labels, data.x.inner
    w = labels.enter(torch.zeros(4, D))
    view, alias = run(labels, "select.int", w, 0, 1)[0], run(labels, "detach.default", w)[0]
    (first,) = run(labels, "select.int", row, 0, 3)
    run(labels, "add_.Tensor", view, first)
    for value in (w, alias, view):
        assert labels.type_of(value).datasets == ("d",) and labels.type_of(value).rows("d") == 1


def test_rows_written_into_a_part_make_the_whole_mixed(data: Data) -> None:
    labels = data.labels
    w = labels.enter(torch.zeros(N, 2))
    (column,) = run(labels, "select.int", w, 1, 0)
    (values,) = run(labels, "select.int", data.x.inner, 1, 0)
    run(labels, "copy_.default", column, values, where="command 5")
    assert labels.type_of(column).axis("d") == 0 and labels.type_of(column).mixed is None
    assert labels.type_of(w).mixed is not None


def test_constants_are_constant_until_a_part_is_written(data: Data) -> None:
    labels = data.labels
    (ones,) = run(labels, "ones_like.default", data.y.inner)
    assert labels.type_of(ones).dims == (((N, CONST),),)
    (one,) = run(labels, "slice.Tensor", ones, 0, 0, 1)
    run(labels, "fill_.Scalar", one, 0)
    assert labels.type_of(ones).dims == (((N, FREE),),)


def test_overwriting_forgets_nothing(data: Data) -> None:
    labels = data.labels
    (mixed,) = run(labels, "flip.default", data.x.inner, [0])
    run(labels, "zero_.default", mixed)
    assert labels.type_of(mixed).mixed is not None
    (total,) = run(labels, "sum.dim_IntList", data.x.inner, [0])
    run(labels, "copy_.default", total, labels.enter(torch.zeros(D)))
    assert labels.type_of(total).datasets == ("d",)


def test_an_in_place_operation_that_fails_leaves_its_target_mixed(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """It wrote row 0 before it came to the index that does not exist."""
    labels = data.labels
    w = labels.enter(torch.zeros(4, D))
    (same,) = run(labels, "detach.default", w)
    args = [w, [labels.enter(torch.tensor([0, 99]))], run(labels, "slice.Tensor", data.x.inner, 0, 3, 5)[0]]
    with pytest.raises(ExecutionFailed, match="out of range"):
        run(labels, "index_put_.default", *args)
    assert not labels.type_of(w).labelled, "the client's own index was checked first, and nothing was written"
    monkeypatch.setattr("grid.tensors.bounds.examine", lambda bound: None)
    run(labels, "index_put_.default", *args)
    assert torch.equal(w[0], data.plain["x"][3])
    assert labels.type_of(w).mixed is not None and labels.type_of(same).mixed is not None
    assert labels.spoilt(w) is not None and labels.spoilt(same) is labels.spoilt(w)


def test_an_operand_that_overlaps_the_target_is_read_first(labels: Labels) -> None:
    w = labels.enter(torch.arange(6.0))
    (front,), (back,) = run(labels, "slice.Tensor", w, 0, 0, 5), run(labels, "slice.Tensor", w, 0, 1, 6)
    run(labels, "copy_.default", back, front)
    assert w.tolist() == [0, 0, 1, 2, 3, 4]


def test_batch_norm_writes_its_statistics(data: Data) -> None:
    labels = data.labels
    mean, var = labels.enter(torch.zeros(D)), labels.enter(torch.ones(D))
    run(labels, "native_batch_norm.default", data.x.inner, None, None, mean, var, False, 0.1, 1e-5)
    assert not labels.type_of(mean).labelled
    run(labels, "native_batch_norm.default", data.x.inner, None, None, mean, var, True, 0.1, 1e-5)
    assert labels.type_of(mean).datasets == labels.type_of(var).datasets == ("d",)
    assert labels.type_of(mean).axis("d") is None


def test_a_datasets_memory_is_never_written(labels: Labels) -> None:
    x = labels.enter(torch.ones(N, 2), labels.dataset_type("d", N, (N, 2)), fixed=True)
    for value in (x, run(labels, "select.int", x, 0, 0)[0]):
        with pytest.raises(InvalidRequest, match="clone"):
            run(labels, "zero_.default", value)
    assert x.sum() == 2 * N
    (copy,) = run(labels, "clone.default", x)
    run(labels, "zero_.default", copy)


def test_fresh_memory_is_zero(labels: Labels) -> None:
    for name, args in [("empty.memory_format", [[1000]]), ("new_empty.default", [labels.enter(torch.ones(1)), [1000]])]:
        secret = torch.full((1000,), 42.0)
        del secret
        (made,) = run(labels, name, *args)
        assert not made.any()


# ---------------------------------------------------------------- bookkeeping


def test_every_tensor_has_to_be_entered(labels: Labels) -> None:
    with pytest.raises(LocalProtocolError):
        run(labels, "relu.default", torch.ones(2))
    with pytest.raises(LocalProtocolError):
        labels.enter(torch.nn.Parameter(torch.ones(2)))


def test_an_unknown_view_is_mixed_if_its_memory_has_a_label(data: Data) -> None:
    labels = data.labels
    assert labels.type_of(data.x.inner[0]).mixed is not None
    own = labels.enter(torch.ones(3))
    assert not labels.type_of(own[:2]).labelled


def test_what_dies_is_forgotten_on_any_thread(labels: Labels) -> None:
    kept = labels.enter(torch.ones(2))
    for _ in range(100):
        run(labels, "relu.default", kept)
    assert len(labels) == 1
    box = [labels.enter(torch.ones(2))]
    thread = threading.Thread(target=box.clear)
    thread.start()
    thread.join()
    gc.collect()
    assert len(labels) == 1
    labels.forget(kept)
    assert len(labels) == 0


def test_a_view_keeps_what_was_written_through_a_tensor_that_is_gone(data: Data) -> None:
    labels = data.labels
    w = labels.enter(torch.zeros(4, D))
    (view,) = run(labels, "select.int", w, 0, 0)
    run(labels, "copy_.default", view, run(labels, "select.int", data.x.inner, 0, 3)[0])
    del view
    assert labels.type_of(w).rows("d") == 1


def test_verdicts_are_kept_but_not_those_of_an_index(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = data.labels
    judged: list[str] = []
    judge = Labels._judge
    monkeypatch.setattr(Labels, "_judge", lambda self, bound, key: judged.append(bound.op.name) or judge(self, bound, key))
    first, second = labels.enter(torch.tensor([0, 1, 2])), labels.enter(torch.tensor([5, 6, 7]))
    for _ in range(3):
        run(labels, "mul.Tensor", data.x.inner, 2)
        picked = [run(labels, "index_select.default", data.x.inner, 0, index)[0] for index in (first, second)]
    assert judged.count("aten.mul.Tensor") == 1
    assert judged.count("aten.index_select.default") == 6
    orders = [labels.type_of(value).dims[0][0][1] for value in picked]
    assert [order.index.tolist() for order in orders if isinstance(order, Order)] == [[0, 1, 2], [5, 6, 7]]


def test_a_kept_verdict_names_the_present_step(data: Data) -> None:
    labels = data.labels
    for step in ("command 1", "command 2"):
        (total,) = run(labels, "sum.dim_IntList", data.x.inner, [0], where=step)
        (flipped,) = run(labels, "flip.default", data.x.inner, [0], where=step)
        assert labels.type_of(total).story.blame["d"] == f"{step}, aten.sum.dim_IntList"
        assert labels.type_of(flipped).story.mixed == f"{step}, aten.flip.default"
    (later,) = run(labels, "mul.Tensor", flipped, total, where="command 3")
    assert labels.type_of(later).story.mixed == "command 2, aten.flip.default"


def test_a_kept_verdict_does_not_hide_memory_that_repeats(labels: Labels) -> None:
    (dense,) = run(labels, "zeros.default", [4, 3])
    run(labels, "fill_.Scalar", dense, 1.0)
    (row,) = run(labels, "zeros.default", [1, 3])
    (wide,) = run(labels, "expand.default", row, [4, 3])
    with pytest.raises(InvalidRequest, match="share memory"):
        run(labels, "fill_.Scalar", wide, 1.0)


def test_a_failure_on_private_values_says_nothing(data: Data) -> None:
    labels = data.labels
    table = labels.enter(torch.ones(2, 3))
    (looked_up,) = run(labels, "embedding.default", table, data.y.inner, where="command 9")
    private = labels.spoilt(looked_up)
    assert private is not None and private.message == f"aten.embedding.default: {PRIVATE_FAILURE}"
    assert private.details == {"op": "aten.embedding.default", "step": "command 9", "private": True}
    solved, info = _singular(data)
    assert labels.spoilt(solved) is None
    run(labels, "_linalg_check_errors.default", info, "linalg.solve", is_matrix=True)
    for value in (solved, info, run(labels, "mul.Tensor", solved, 2.0)[0]):
        assert PRIVATE_FAILURE in str(labels.spoilt(value))
    with pytest.raises(ExecutionFailed, match="between 0 and 1") as own:
        run(labels, "embedding.default", table, labels.enter(torch.tensor([7])))
    assert own.value.details["private"] is False


def _singular(data: Data) -> tuple[Tensor, Tensor]:
    """The result and the `info` of a solve whose matrix, made of rows, is singular."""
    labels = data.labels
    (zero,) = run(labels, "mul.Tensor", run(labels, "sum.default", data.x.inner)[0], 0.0)
    (matrix,) = run(labels, "expand.default", zero, [2, 2])
    made = run(labels, "_linalg_solve_ex.default", matrix, labels.enter(torch.ones(2)))
    return made[0], made[3]


def test_a_limit_on_elements(labels: Labels) -> None:
    small = Labels(max_elements=100)
    with pytest.raises(InvalidRequest, match="may make 100"):
        run(small, "zeros.default", [101])


def test_what_came_from_elsewhere_stays_mixed(data: Data) -> None:
    labels = data.labels
    foreign = labels.enter(torch.ones(D), labels.foreign(["bob/d"], (D,)))
    (out,) = run(labels, "add.Tensor", run(labels, "sum.dim_IntList", data.x.inner, [0])[0], foreign)
    kind = labels.type_of(out)
    assert kind.mixed is not None and kind.datasets == ("bob/d (elsewhere)", "d")
    assert not labels.foreign([], (D,)).labelled


def test_rows_of_two_datasets(data: Data) -> None:
    other = rows_of(data.labels, torch.randn(N, D), "e")
    assert (data.x * other).type_.mixed is not None
    kind = (data.x.sum(0) * other).type_
    assert kind.mixed is None and kind.axis("e") == 0 and kind.axis("d") is None and kind.datasets == ("d", "e")


def test_a_single_row_is_a_cell_of_one(labels: Labels) -> None:
    kind = labels.dataset_type("d", N, (1, D), np.array([5]))
    assert kind.rows("d") == 1 and kind.axis("d") is None
    with pytest.raises(InvalidRequest, match="twice"):
        labels.dataset_type("d", N, (2, D), np.array([5, 5]))
    with pytest.raises(LocalProtocolError):
        labels.dataset_type("d", N, (3, D), np.array([5]))


def test_without_memory_for_labels_a_written_value_is_mixed() -> None:
    labels = Labels(max_bytes=1 << 17)
    rows = 4000
    x = labels.enter(torch.ones(rows, 2), labels.dataset_type("d", rows, (rows, 2)))
    total = labels.enter(torch.zeros(2))
    kept = []
    with pytest.raises(QuotaExceeded):
        for row in range(1000):
            kept.append(run(labels, "select.int", x, 0, row)[0])
            run(labels, "add_.Tensor", total, kept[-1])
    kind = labels.type_of(total)
    assert kind.mixed is not None or kind.rows("d") == 1
