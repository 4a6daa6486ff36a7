"""Models and whole training steps that the plan tests trace, with the same steps as eager PyTorch takes them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from grid.plans.optimizers import SGD, Adam, AdamW, Optimizer

CLASSES = 3


class Block(nn.Module):
    """Two convolutions with batch norm, around which the input goes as it is or through a smaller one."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        same = stride == 1 and inputs == outputs
        other = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.around = nn.Identity() if same else other

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.main(x) + self.around(x))


class Last(nn.Module):
    """What a recurrent layer says at the end of a sequence."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer, self.out = layer, nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out(self.layer(x)[0][:, -1])
        return result


class Mean(nn.Module):
    """The mean over dimension 1."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, CLASSES))


def lenet() -> nn.Module:
    features = [nn.Conv2d(3, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 8, 3), nn.Tanh(), nn.MaxPool2d(2)]
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, CLASSES))


def resnet() -> nn.Module:
    stem = [nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()]
    return nn.Sequential(*stem, Block(4, 4), Block(4, 8, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))


def gru() -> nn.Module:
    return Last(nn.GRU(8, 5, batch_first=True), 5)


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), Mean(), nn.Linear(8, CLASSES))


def groups() -> nn.Module:
    first = [nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU()]
    second = [nn.Conv2d(8, 8, 3, stride=2), nn.GroupNorm(4, 8), nn.SiLU()]
    return nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))


MODELS: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (8,)),
    "lenet": (lenet, (3, 8, 8)),
    "resnet": (resnet, (3, 8, 8)),
    "gru": (gru, (8, 8)),
    "transformer": (transformer, (8, 8)),
    "groups": (groups, (3, 8, 8)),
}
"""Name -> model and the shape of one row: pictures are 8 high and sequences 8 long, as many as rows in the example."""

OPTIMIZERS: Mapping[str, tuple[Optimizer, Callable[[Any], torch.optim.Optimizer]]] = {
    "sgd": (SGD(lr=0.1, momentum=0.9), lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9)),
    "adam": (Adam(lr=0.01), lambda params: torch.optim.Adam(params, lr=0.01)),
    "adamw": (AdamW(lr=0.01), lambda params: torch.optim.AdamW(params, lr=0.01)),
}


class Tensors(NamedTuple):
    """What a step takes and gives: parameters, buffers and the optimizer's state."""

    params: dict[str, Tensor]
    buffers: dict[str, Tensor]
    state: dict[str, Any]


def make(name: str) -> nn.Module:
    torch.manual_seed(3)
    return MODELS[name][0]()


def batch(name: str, rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, *MODELS[name][1], generator=generator), torch.randint(0, CLASSES, (rows,), generator=generator)


def start(module: nn.Module, optimizer: Optimizer) -> Tensors:
    params = {name: value.detach().clone().requires_grad_() for name, value in module.named_parameters()}
    return Tensors(params, {name: value.clone() for name, value in module.named_buffers()}, optimizer.init(params))


def step_of(module: nn.Module, optimizer: Optimizer) -> Callable[..., Any]:
    """A whole training step as a user writes it."""

    def step(params: Any, buffers: Any, state: Any, x: Tensor, y: Tensor) -> Any:
        loss = F.cross_entropy(functional_call(module, (params, buffers), (x,)), y)
        gradients = torch.autograd.grad(loss, list(params.values()))
        params, state = optimizer.update(params, gradients, state)
        return params, buffers, state, loss

    return step


class Eager:
    """The same model, trained by PyTorch itself."""

    def __init__(self, module: nn.Module, optimizer: Callable[[Any], torch.optim.Optimizer]) -> None:
        self.module = copy.deepcopy(module)
        self._optimizer = optimizer(self.module.parameters())

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        self._optimizer.zero_grad()
        loss = F.cross_entropy(self.module(x), y)
        loss.backward()
        self._optimizer.step()
        return loss.detach()

    def noise(self, name: str) -> Tensor:
        """Where a parameter's gradient is zero but for rounding (the bias of attention's keys), so that Adam, which divides by
        the gradient's size, walks in a direction that rounding decides."""
        state = self._optimizer.state[self.module.get_parameter(name)]
        return state["exp_avg_sq"].sqrt() < 1e-7 if "exp_avg_sq" in state else torch.tensor(False)
