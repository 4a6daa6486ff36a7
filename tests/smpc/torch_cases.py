"""What users write in torch, as cases: functions of tensors, the interval of their elements, the error that is allowed.

The bounds are those of the table of functions. `within` says what is wrong with a result on shares.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grid.smpc.functions.table import SECURE_OPS, UNIT

INPUT = 2.0**-19
"""What an operand is rounded by."""

SHAPES = [(1,), (5,), (3, 4), (4, 1, 6)]
MATRIX = (3, 4)


class Case(NamedTuple):
    """A function of `count` tensors of one shape, with elements from `low` to `high`."""

    function: Callable[..., Any]
    row: str | None = None
    """Of the table of functions: its interval and error are this case's, but for what is given here."""
    count: int = 1
    low: float | None = None
    high: float | None = None
    error: float | None = None
    relative: float = 0.0
    slope: float = 1.0
    """How much the result changes with an operand, whose rounding it has on top."""
    whole: bool = False
    """Integers from low to high."""


def made(case: Case, shape: tuple[int, ...], seed: int) -> list[Tensor]:
    row = SECURE_OPS[case.row] if case.row else None
    low = case.low if case.low is not None else row.low if row else -8.0
    high = case.high if case.high is not None else row.high if row else 8.0
    generator = torch.Generator().manual_seed(seed)
    results = []
    for _ in range(case.count):
        if case.whole:
            results.append(torch.randint(int(low), int(high) + 1, shape, generator=generator))
            continue
        sizes = 2.0 ** (torch.rand(shape, generator=generator, dtype=torch.float64) * (math.log2(max(high, -low)) + 17) - 17)
        signs = torch.randint(0, 2, shape, generator=generator) * 2 - 1
        x = (sizes * signs if low < 0 else sizes).clamp(low, high)
        edges = torch.tensor([low, high, 0.0, -1.0, 1.0], dtype=torch.float64).clamp(low, high)
        pick = torch.randint(0, 5, shape, generator=generator)
        x = torch.where(torch.rand(shape, generator=generator) < 0.15, edges[pick], x)
        results.append(((x / UNIT).round() * UNIT).float())
    return results


def fault(case: Case, inputs: list[Tensor], found: list[Tensor]) -> str:
    """What is wrong with the results of a case, opened; nothing if they are what they should be."""
    row = SECURE_OPS[case.row] if case.row else None
    wanted = listed(case.function(*inputs))
    exact = listed(case.function(*(x.double() if x.dtype.is_floating_point else x for x in inputs)))
    absolute = case.error if case.error is not None else row.absolute if row else 0.0
    relative = case.relative or (row.relative if row else 0.0)
    for got, right, precise in zip(found, wanted, exact, strict=True):
        if (got.shape, got.dtype) != (right.shape, right.dtype):
            return f"{got.shape} {got.dtype} for {right.shape} {right.dtype}"
        if not right.dtype.is_floating_point:
            if not torch.equal(got, right):
                return f"{got} for {right}"
            continue
        off = (got.double() - precise.double()).abs()
        allowed = absolute + case.slope * INPUT + (relative + 2.0**-23) * precise.double().abs()
        if not bool((off <= allowed).all()):
            return f"off by {float(off.max())}: {got} for {precise}, of {inputs}"
    return ""


def listed(results: Any) -> list[Any]:
    """One result, or several, as a list."""
    return list(results) if isinstance(results, tuple | list) else [results]


X = torch.linspace(-3, 3, 12).reshape(3, 4)
TABLE = torch.randn(9, 5, generator=torch.Generator().manual_seed(3))
C = Case

ELEMENTWISE: dict[str, Case] = {
    "x + 1": C(lambda x: x + 1, "add"),
    "x + y": C(torch.add, "add", 2),
    "x - 0.5 * y": C(lambda x, y: torch.sub(x, y, alpha=0.5), "multiply_public", 2, slope=2),
    "2 - x": C(lambda x: 2 - x, "subtract"),
    "-x": C(lambda x: -x, "subtract"),
    "x * y": C(torch.mul, "multiply", 2, low=-4096, high=4096),
    "x * 3": C(lambda x: x * 3, "multiply_public", slope=3),
    "x * -0.7": C(lambda x: x * -0.7, "multiply_public"),
    "x / 7": C(lambda x: x / 7, "divide_public"),
    "x / y": C(lambda x, y: x / (y + 2), "divide", 2, low=1, high=500),
    "1 / x": C(lambda x: 1 / x, "reciprocal", low=0.25),
    "x.square": C(torch.square, "multiply"),
    "x ** 3": C(lambda x: x**3, "multiply", low=-32, high=32, error=33 * 2 * UNIT),
    "x ** -2": C(lambda x: x**-2, "reciprocal", low=0.5, high=100, error=5e-5, relative=2e-5),
    "x ** 0": C(lambda x: x**0, "multiply"),
    "x ** 0.5": C(lambda x: x**0.5, "sqrt"),
    "x ** -0.5": C(lambda x: x**-0.5, "rsqrt", low=0.25),
    "exp": C(torch.exp, "exp", high=10, relative=1.5e-5),
    "expm1": C(torch.expm1, "exp", high=10, relative=1.5e-5, error=3e-5),
    "log": C(torch.log, "log", low=1 / 16),
    "log1p": C(torch.log1p, "log", low=0),
    "log2": C(torch.log2, "log", low=1 / 16, error=2.5e-5),
    "log10": C(torch.log10, "log", low=1 / 16),
    "sqrt": C(torch.sqrt, "sqrt"),
    "rsqrt": C(torch.rsqrt, "rsqrt", low=0.25),
    "reciprocal": C(torch.reciprocal, "reciprocal", low=0.25),
    "abs": C(torch.abs, "abs"),
    "sign": C(torch.sign, "sign"),
    "clamp": C(lambda x: x.clamp(-1.5, 2), "clamp"),
    "clamp min": C(lambda x: x.clamp(min=0.25), "clamp"),
    "clamp crossed": C(lambda x: x.clamp(2.0, 1.0), "clamp"),
    "clamp infinite": C(lambda x: x.clamp(-math.inf, 1.0), "clamp"),
    "clamp tensors": C(lambda x, y: x.clamp(y, y + 1), "maximum", 2),
    "minimum": C(torch.minimum, "minimum", 2),
    "maximum": C(torch.maximum, "maximum", 2),
    "relu": C(torch.relu, "relu"),
    "relu6": C(F.relu6, "clamp"),
    "hardtanh": C(F.hardtanh, "clamp"),
    "threshold": C(lambda x: F.threshold(x, 0.5, -2.0), "where"),
    "leaky_relu": C(F.leaky_relu, "leaky_relu"),
    "sigmoid": C(torch.sigmoid, "sigmoid"),
    "tanh": C(torch.tanh, "tanh"),
    "gelu": C(F.gelu, "gelu"),
    "gelu tanh": C(lambda x: F.gelu(x, approximate="tanh"), "gelu_tanh", low=-1e4, high=1e4),
    "silu": C(F.silu, "silu"),
    "elu": C(lambda x: F.elu(x, 1.5), "elu", error=4e-5),
    "softplus": C(F.softplus, "softplus"),
    "hardsigmoid": C(F.hardsigmoid, "clamp", error=UNIT),
    "hardswish": C(F.hardswish, "multiply", error=0.02),
    "selu": C(F.selu, "elu", low=-500, high=500, error=1e-3),
    "logsigmoid": C(F.logsigmoid, "softplus"),
    "mish": C(F.mish, "tanh", low=-64, high=64, error=0.03),
    "logaddexp": C(torch.logaddexp, "softplus", 2, slope=2),
    "frac": C(torch.frac, "trunc", low=-1e5, high=1e5),
    "isnan": C(lambda x: x.isnan() | x.isinf(), "less"),
    "prelu": C(lambda x: F.prelu(x, torch.tensor(0.25, dtype=x.dtype)[None]), "leaky_relu"),
    "floor": C(torch.floor, "floor", low=-1e5, high=1e5),
    "ceil": C(torch.ceil, "ceil", low=-1e5, high=1e5),
    "trunc": C(torch.trunc, "trunc", low=-1e5, high=1e5),
    "long": C(lambda x: x.long(), "trunc", low=-1e5, high=1e5),
    "double": C(lambda x: x.double(), "add"),
    "lerp": C(lambda x, y: torch.lerp(x, y, 0.3), "multiply_public", 2, error=2e-3),
    "addcmul": C(lambda x, y: torch.addcmul(x, x, y, value=2), "multiply", 2, low=-100, high=100, error=3 * UNIT),
    "x > y": C(torch.gt, "less", 2),
    "x >= 0": C(lambda x: x >= 0, "less"),
    "x < y": C(torch.lt, "less", 2),
    "x <= 1": C(lambda x: x <= 1, "less"),
    "x == y": C(torch.eq, "equal", 2, whole=True, low=-3, high=3),
    "x != 0": C(lambda x: x != 0, "equal"),
    "in between": C(lambda x: (x > -1) & (x < 1), "less"),
    "either side": C(lambda x: (x < -1) | (x > 1), "less"),
    "not": C(lambda x: ~(x > 0), "less"),
    "xor": C(lambda x, y: (x > 0) ^ (y > 0), "less", 2),
    "logical": C(lambda x, y: torch.logical_and(x, y) | torch.logical_xor(x, y), "equal", 2, whole=True, low=-2, high=2),
    "truths are equal": C(lambda x, y: (x > 0) == (y > 0), "less", 2),
    "where": C(lambda x, y: torch.where(x > y, x, y), "where", 2),
    "where numbers": C(lambda x: torch.where(x > 0, 1.0, -1.0), "where"),
    "masked_fill": C(lambda x: x.masked_fill(x < 0, -7.0), "where"),
    "mask times": C(lambda x, y: (x > 0) * y, "where", 2),
    "mask counts": C(lambda x: (x > 0).sum(), "where"),
    "mask to numbers": C(lambda x: (x > 0).float() - (x < 0).float(), "where"),
    "whole": C(lambda x, y: x * y - 3 * x + y**2, "multiply", 2, whole=True, low=-1000, high=1000),
    "whole and real": C(lambda x, y: x * 0.5 + y / 4, "multiply_public", 2, whole=True, low=-1000, high=1000, error=2 * UNIT),
    "whole compared": C(lambda x: (x < 0.5) | (x == 2), "less", whole=True, low=-5, high=5),
    "zeros_like": C(lambda x: torch.zeros_like(x) + torch.full_like(x, 2.5) + x.new_ones(x.shape), "add"),
}

SHAPED: dict[str, Case] = {
    "max": C(lambda x: x.max(), "max"),
    "max of rows": C(lambda x: x.max(1), "max"),
    "min of columns": C(lambda x: x.min(0, keepdim=True), "min"),
    "amax": C(lambda x: x.amax((0, 1)), "max"),
    "amin": C(lambda x: x.amin(0), "min"),
    "argmax": C(lambda x: x.argmax(1), "argmax"),
    "argmax of all": C(lambda x: x.argmax(), "argmax"),
    "argmin": C(lambda x: x.argmin(0, keepdim=True), "argmin"),
    "aminmax": C(lambda x: torch.aminmax(x, dim=1), "max"),
    "sort": C(lambda x: x.sort(1), "sort"),
    "sort down": C(lambda x: x.sort(0, descending=True).values, "sort"),
    "argsort with equals": C(lambda x: x.argsort(dim=1, stable=True), "sort", whole=True, low=-1, high=1),
    "topk": C(lambda x: x.topk(2, 1).values, "topk"),
    "kthvalue": C(lambda x: x.kthvalue(2, 1).values, "topk"),
    "median": C(lambda x: x.median(), "topk"),
    "median of rows": C(lambda x: x.median(1).values, "topk"),
    "softmax": C(lambda x: x.softmax(1), "softmax", low=-100, high=100, slope=2),
    "log_softmax": C(lambda x: F.log_softmax(x, 0), "log_softmax", low=-1000, high=1000, slope=4),
    "logsumexp": C(lambda x: x.logsumexp(1), "log_softmax", low=-1000, high=1000, slope=4),
    "sum": C(lambda x: x.sum(), "sum", slope=12),
    "sum of rows": C(lambda x: x.sum(1, keepdim=True, dtype=torch.float64), "sum", slope=4),
    "mean": C(lambda x: x.mean(0), "mean"),
    "var": C(lambda x: x.var(1), "var", slope=64),
    "var of all": C(lambda x: x.var(correction=0), "var", slope=64),
    "std": C(lambda x: (x * 0.1 + torch.arange(4.0)).std(1), low=-8, high=8, error=5e-5),
    "var_mean": C(lambda x: torch.var_mean(x, 1), "var", slope=64),
    "norm": C(lambda x: (x + 9).norm(), low=-8, high=8, error=2e-5, relative=1e-5, slope=4),
    "norm of rows": C(lambda x: torch.linalg.vector_norm(x + 9, dim=1), low=-8, high=8, error=2e-5, relative=1e-5, slope=2),
    "norm 1": C(lambda x: x.norm(p=1, dim=1), "abs", low=-1000, high=1000, slope=4),
    "norm infinite": C(lambda x: x.norm(p=math.inf), "abs"),
    "prod": C(lambda x: x.prod(1), "prod"),
    "cumsum": C(lambda x: x.cumsum(1), "cumsum", slope=4),
    "any": C(lambda x: (x > 0).any(1), "less"),
    "all": C(lambda x: (x > -1).all(), "less"),
    "count_nonzero": C(lambda x: torch.count_nonzero(x), "equal", whole=True, low=-1, high=1),
    "x @ y": C(lambda x, y: x @ y.t(), "matmul", 2, low=-64, high=64, slope=512),
    "x @ public": C(lambda x: x @ X.t().to(x.dtype), "matmul", low=-64, high=64, slope=300),
    "public @ x": C(lambda x: X.t().to(x.dtype) @ x, "matmul", low=-64, high=64, slope=300),
    "x @ vector": C(lambda x: x @ x[0], "matmul", low=-64, high=64, slope=512),
    "dot": C(lambda x: x[0] @ x[1], "matmul", low=-64, high=64, slope=512),
    "batches": C(lambda x, y: torch.stack([x, y]) @ torch.stack([y.t(), x.t()]), "matmul", 2, low=-64, high=64, slope=512),
    "batches @ public": C(lambda x: torch.stack([x, 2 * x]) @ X.t().to(x.dtype), "matmul", low=-64, high=64, slope=600),
    "baddbmm": C(
        lambda x: torch.baddbmm(x[None, :, :3], x[None], x.t()[None, :, :3], beta=0.5), "matmul",
        low=-8, high=8, error=1e-5, slope=64,
    ),
    "addmm scaled": C(
        lambda x: torch.addmm(x[:, :3], x, x.t(), alpha=0.5, beta=2), "matmul", low=-8, high=8, error=1e-5, slope=64
    ),
    "einsum": C(lambda x, y: torch.einsum("ij,kj->ik", x, y), "matmul", 2, low=-64, high=64, slope=512),
    "whole products": C(lambda x, y: x @ y.t(), "matmul", 2, whole=True, low=-100, high=100),
    "views": C(
        lambda x: [x.t(), x[:, 1], x[1:, ::2], x[:, None], x.reshape(2, 6), x.flatten(), x.movedim(0, 1), x[..., -1]], "add"
    ),
    "pieces": C(lambda x: [*x.split(2, 1), *x.chunk(2), *x.unbind(), *x.tensor_split(2)], "add"),
    "turned": C(lambda x: [x.flip(0), x.roll(1, 1), x.repeat(2, 1), x.tile(2), x.tril(), x.triu(1), x.diagonal()], "add"),
    "padded": C(lambda x: [F.pad(x, (1, 2)), F.pad(x, (0, 1, 2, 0), value=1.5)], "add"),
    "joined": C(lambda x, y: [torch.cat([x, y], 1), torch.stack([x, y], -1), torch.cat([x, X.to(x.dtype)])], "add", 2),
    "spread": C(lambda x: [x[:1].expand(3, 4), x[:, :1].expand_as(x), x.unsqueeze(0).squeeze()], "add"),
    "picked": C(
        lambda x: [
            x[torch.tensor([2, 0])], x[:, [1, -1]], x[[0, 1], [2, 3]], x.index_select(1, torch.tensor([3, 3])),
            x.gather(1, torch.tensor([[0], [3], [1]])),
        ],
        "add",
    ),
    "truths arranged": C(lambda x: [(x > 0).t(), torch.cat([x > 0, x < 0]), (x > 0)[1], (x > 0).flip(1)], "less"),
    "one_hot": C(lambda x: F.one_hot(x.argmax(1), 4), "argmax"),
    "scattered": C(
        lambda x: [
            x.scatter(1, torch.tensor([[0, 2], [3, 3], [1, 0]]), 5.0),
            torch.zeros_like(x).scatter(1, x.argmax(1, keepdim=True), 2.5),
        ],
        "argmax",
    ),
    "distances": C(lambda x, y: ((x[:, None] - y[None]) ** 2).sum(-1), "multiply", 2, low=-32, high=32, error=1e-4, slope=1024),
    "cross entropy": C(
        lambda x: [
            F.cross_entropy(x, torch.tensor([0, 3, 2])), F.cross_entropy(x, torch.tensor([0, -100, 2]), reduction="sum"),
            F.nll_loss(F.log_softmax(x, 1), torch.tensor([0, 3, 2]), reduction="none"),
        ],
        "log_softmax", low=-100, high=100, slope=4, error=2e-4,
    ),
    "mse": C(
        lambda x, y: [F.mse_loss(x, y), F.mse_loss(x, y, reduction="none"), F.l1_loss(x, y), ((x - y) ** 2).mean()],
        "multiply", 2, low=-64, high=64, error=1e-4, slope=512,
    ),
    "with logits": C(
        lambda x, y: F.binary_cross_entropy_with_logits(x, y), "softplus", 2, low=0, high=1, error=5e-5, slope=4
    ),
    "glu": C(lambda x: F.glu(x, 1), "sigmoid", low=-8, high=8, error=2e-3, slope=8),
    "trace": C(lambda x: x.trace(), "sum", slope=3),
    "pixels": C(
        lambda x: [F.interpolate(x[None, None], scale_factor=2), F.pad(x[None], (1, 2, 1, 1), mode="reflect"),
                   F.pad(x[None], (1, 2, 1, 1), mode="replicate")],
        "add",
    ),
    "normalized": C(lambda x: F.normalize(x + 9, dim=1), low=-8, high=8, error=1e-4, slope=2),
    "embedding": C(lambda x: F.embedding(x.abs(), TABLE), low=0, high=8, whole=True, error=INPUT),
}  # fmt: skip


# ---------------------------------------------------------------- modules

IMAGES = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(5))
ROWS = torch.randn(4, 6, generator=torch.Generator().manual_seed(6)) * 2


def with_statistics(module: nn.Module) -> nn.Module:
    """A batch norm that has seen something."""
    for name, value in module.named_buffers():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape) + 0.5 if name.endswith("var") else torch.randn(value.shape))
    for value in module.parameters():
        value.data = torch.randn(value.shape) * 0.5
    return module


MODULES: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "Linear": (lambda: nn.Linear(6, 3), ROWS),
    "Linear of batches": (lambda: nn.Linear(6, 3), ROWS.reshape(2, 2, 6)),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2), IMAGES[0, :, :2].permute(1, 0, 2).reshape(2, 4, 6)),
    "Conv2d": (lambda: nn.Conv2d(4, 3, (3, 2), stride=(2, 1), padding=(1, 0)), IMAGES),
    "Conv2d in groups": (lambda: nn.Conv2d(4, 8, 3, groups=2, dilation=2, padding="same"), IMAGES),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(4), IMAGES),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(6, affine=False), ROWS),
    "LayerNorm": (lambda: nn.LayerNorm(6), ROWS),
    "LayerNorm of two axes": (lambda: nn.LayerNorm((6, 6), elementwise_affine=False), IMAGES),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), IMAGES),
    "MaxPool2d": (lambda: nn.MaxPool2d(3, 2, 1), IMAGES),
    "MaxPool1d": (lambda: nn.MaxPool1d(2), IMAGES[0]),
    "AvgPool2d": (lambda: nn.AvgPool2d(2), IMAGES),
    "AvgPool2d padded": (lambda: nn.AvgPool2d(3, 2, 1), IMAGES),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d(3), IMAGES),
    "global average": (lambda: nn.AdaptiveAvgPool2d(1), IMAGES),
    "Dropout": (lambda: nn.Dropout(0.5), ROWS),
    "Flatten": (lambda: nn.Flatten(), IMAGES),
    "Softmax": (lambda: nn.Softmax(1), ROWS),
    "GELU": (lambda: nn.GELU("tanh"), ROWS),
    "SiLU": (lambda: nn.SiLU(), ROWS),
    "MLP": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3), nn.Sigmoid()), ROWS),
    "CNN": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3), nn.ReLU6(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 5), nn.LogSoftmax(1)
        ),
        IMAGES,
    ),
}  # fmt: skip

# ---------------------------------------------------------------- gradients

CLASSES = torch.tensor([0, 3, 2])
HOT = F.one_hot(CLASSES, 4).float()
SIDES = 2 * HOT - 1

LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "cross entropy": lambda x: F.cross_entropy(x, CLASSES),
    "cross entropy of probabilities": lambda x: F.cross_entropy(x, HOT),
    "cross entropy smoothed": lambda x: F.cross_entropy(x, CLASSES, label_smoothing=0.1),
    "squares": lambda x: F.mse_loss(x, HOT),
    "absolute distances": lambda x: F.l1_loss(x, HOT),
    "smooth distances": lambda x: F.smooth_l1_loss(x, HOT, beta=0.5),
    "huber": lambda x: F.huber_loss(x, HOT, delta=0.7),
    "hinge": lambda x: F.relu(1 - SIDES * x).mean(),
    "hinge embedding": lambda x: F.hinge_embedding_loss(x, SIDES),
    "soft margin": lambda x: F.soft_margin_loss(x, SIDES),
    "binary": lambda x: F.binary_cross_entropy_with_logits(x, HOT),
    "divergence": lambda x: F.kl_div(F.log_softmax(x, 1), HOT, reduction="batchmean"),
    "triplets": lambda x: F.triplet_margin_loss(x, HOT, HOT.flip(0)),
}  # fmt: skip
"""Of scores (3, 4)."""

NOT_DERIVED = ("clamp infinite", "prod", "trace")
"""Of the cases: their gradients compare with infinity, multiply cumulatively, or are written by index."""

DERIVED: dict[str, Callable[..., Any]] = {
    **{name: one.function for name, one in {**ELEMENTWISE, **SHAPED}.items() if name not in NOT_DERIVED and not one.whole},
    **LOSSES,
    "attention": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None]),
    "looked up": lambda x: F.embedding(torch.tensor([[0, 1], [2, 2]]), x, padding_idx=1),
    "max pooled apart": lambda x: F.max_pool2d(x[None, None], 3, 2, 1),
    "max pooled in lines": lambda x: F.max_pool1d(x[None], 2),
    "a batch without statistics": lambda x: F.batch_norm(x, None, None, training=True),
    "instances": lambda x: F.instance_norm(x.reshape(1, 2, 6)),
    "root mean squares": lambda x: F.rms_norm(x, (4,)),
}  # fmt: skip


def gradients(function: Callable[..., Any], inputs: list[Tensor]) -> list[Tensor]:
    """Of a weighted sum of a function's results, for each of its inputs; empty where there are none."""
    results = [one for one in listed(function(*inputs)) if one.dtype.is_floating_point and one.requires_grad]
    if not results:
        return []
    generator = torch.Generator().manual_seed(4)
    total = sum(((one * torch.randn(one.shape, generator=generator)).sum() for one in results), torch.zeros(()))
    return [one for one in torch.autograd.grad(total, inputs, allow_unused=True) if one is not None]


def derivable(name: str) -> list[Tensor]:
    """Inputs of one of `DERIVED`: of the case's interval, but no larger than 4."""
    case = {**ELEMENTWISE, **SHAPED}.get(name, Case(torch.neg, low=-4, high=4))
    row = SECURE_OPS[case.row] if case.row else None
    low = case.low if case.low is not None else row.low if row else -4.0
    high = case.high if case.high is not None else row.high if row else 4.0
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(MATRIX, generator=generator) * (min(high, 4) - max(low, -4)) + max(low, -4) for _ in range(case.count)]
