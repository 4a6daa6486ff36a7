"""Unmodified modules, autograd and optimizers on remote parameters give what they give here."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from local_executor import LocalExecutor
from torch import nn
from torch.nn import functional

from grid.client.modules import RemoteModule, send
from grid.client.tensors import RemoteTensor
from grid.errors import OpNotSupported


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 16, 5)
        self.f1, self.f2, self.f3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(functional.relu(self.c1(x)), 2)
        x = functional.avg_pool2d(torch.tanh(self.c2(x)), 2)
        return self.f3(functional.relu(self.f2(functional.relu(self.f1(x.flatten(1))))))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.c2, self.b2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(x + self.b2(self.c2(functional.relu(self.b1(self.c1(x))))))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(functional.relu(self.norm(self.stem(x))))
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True, activation="gelu")
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(x).mean(1))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 10)), (8, 12)),
    "lenet": (LeNet, (4, 1, 28, 28)),
    "resnet": (ResNet, (4, 3, 8, 8)),
    "encoder": (Encoder, (4, 6, 16)),
}
OPTIMIZERS: dict[str, Callable[[Iterable[torch.Tensor]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
def test_training_equals_eager(model: str, optimizer: str) -> None:
    torch.manual_seed(7)
    make, shape = MODELS[model]
    here = make().double()
    alice = LocalExecutor()
    there = send(here, alice.put)
    here_opt, there_opt = OPTIMIZERS[optimizer](here.parameters()), OPTIMIZERS[optimizer](there.parameters())
    x, y = torch.randn(*shape, dtype=torch.float64), torch.randint(0, 10, (shape[0],))
    rx, ry = send(x, alice.put), send(y, alice.put)
    for _ in range(3):
        for opt, module, features, targets in ((here_opt, here, x, y), (there_opt, there, rx, ry)):
            opt.zero_grad()
            loss = functional.cross_entropy(module(features), targets)
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            opt.step()
    back = there.get()
    assert type(back) is type(here)
    for (name, expected), got in zip(here.state_dict().items(), back.state_dict().values(), strict=True):
        assert type(got) is torch.Tensor and torch.allclose(got, expected, atol=1e-5, rtol=1e-5), name


def test_evaluation_mode_equals_eager() -> None:
    torch.manual_seed(3)
    for make, shape in MODELS.values():
        here = make().eval()
        alice = LocalExecutor()
        there, x = send(here, alice.put), torch.randn(*shape)
        with torch.no_grad():
            got = there(send(x, alice.put)).get()
            assert torch.allclose(got, here(x), atol=1e-5)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_fused_transformer_layers_equal_eager(norm_first: bool, padded: bool) -> None:
    torch.manual_seed(4)
    alice = LocalExecutor()
    here = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first).eval()
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    there, remote_attention, x = send(here, alice.put), send(attention, alice.put), torch.randn(3, 5, 8)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]]) if padded else None
    remote_mask = None if mask is None else send(mask, alice.put)
    with torch.no_grad():
        rx = send(x, alice.put)
        got = there(rx, src_key_padding_mask=remote_mask).get()
        expected = here(x, src_key_padding_mask=mask)
        assert torch.allclose(got, expected, atol=1e-5)
        for need in (False, True):
            got_out, got_weights = remote_attention(rx, rx, rx, key_padding_mask=remote_mask, need_weights=need)
            out, weights = attention(x, x, x, key_padding_mask=mask, need_weights=need)
            assert torch.allclose(got_out.get(), out, atol=1e-5)
            assert weights is None if not need else torch.allclose(got_weights.get(), weights, atol=1e-5)


def test_inference_mode_equals_eager() -> None:
    torch.manual_seed(5)
    make, shape = MODELS["lenet"]
    here, alice, x = make(), LocalExecutor(), torch.randn(*shape)
    with torch.inference_mode():
        there = send(here, alice.put)
        assert torch.allclose(there(send(x, alice.put)).get(), here(x), atol=1e-5)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "batch norm alone": (lambda: nn.BatchNorm1d(5), (6, 5)),
    "group norm": (lambda: nn.GroupNorm(2, 4), (3, 4, 5, 5)),
    "instance norm": (lambda: nn.InstanceNorm2d(4, affine=True), (3, 4, 5, 5)),
    "transposed convolution": (lambda: nn.ConvTranspose2d(3, 4, 3, stride=2), (2, 3, 5, 5)),
    "convolution in 1 dimension": (lambda: nn.Conv1d(6, 4, 3), (2, 6, 8)),
    "prelu": (nn.PReLU, (3, 4)),
    "activations": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.SiLU(), nn.ELU(), nn.LeakyReLU(), nn.Softplus(), nn.Mish()),
        (3, 4),
    ),
    "gru": (lambda: nn.GRU(8, 5, batch_first=True), (4, 6, 8)),
    "upsample": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Upsample(scale_factor=2, mode="bilinear")), (2, 1, 6, 6)),
    "padding": (lambda: nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(1, 1, 3), nn.ZeroPad2d(1)), (2, 1, 8, 8)),
    "decoder": (lambda: Decoder(), (2, 6, 8)),
    "recurrent": (lambda: nn.RNN(4, 5, batch_first=True), (2, 3, 4)),
    "gated": (lambda: nn.GRU(4, 5, batch_first=True), (2, 3, 4)),
    "gated both ways": (lambda: nn.GRU(4, 5, 2, bidirectional=True), (3, 2, 4)),
}


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x, x[:, :3])


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_and_their_gradients_equal_eager(layer: str) -> None:
    """Inputs that want no gradient are another path of torch's than those in the middle of a model."""
    torch.manual_seed(2)
    make, shape = LAYERS[layer]
    for wants in (False, True):
        alice, here, x = LocalExecutor(), make(), torch.randn(*shape, requires_grad=wants)
        there, rx = send(here, alice.put), send(x, alice.put)
        for module, value in ((here, x), (there, rx)):
            out = module(value)
            (out[0] if isinstance(out, tuple) else out).pow(2).sum().backward()
        pairs = [*zip(here.parameters(), there.parameters(), strict=True), *([(x, rx)] if wants else [])]
        for expected, got in pairs:
            assert torch.allclose(got.grad.get(), expected.grad, atol=1e-4), layer


def test_a_sent_module_is_a_new_one_of_the_same_class() -> None:
    alice = LocalExecutor()
    here = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    there = send(here, alice.put)
    assert isinstance(there, nn.Sequential) and isinstance(there, RemoteModule) and type(there).__name__ == "Sequential"
    assert there.location.name == "alice"
    assert all(isinstance(value, RemoteTensor) for value in there.state_dict().values())
    assert all(isinstance(value, nn.Parameter) for value in there.parameters())
    assert all(type(value) is nn.Parameter for value in here.parameters())
    with torch.no_grad():
        here[0].weight.zero_()
    assert there.get()[0].weight.abs().sum() > 0
    assert there[1].num_batches_tracked.get() == 0


def test_parameters_that_are_one_stay_one() -> None:
    alice = LocalExecutor()
    here = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    here["b"].weight = here["a"].weight
    there = send(here, alice.put)
    assert there["a"].weight is there["b"].weight
    back = there.get()
    assert back["a"].weight is back["b"].weight
    assert len(list(back.parameters())) == 3


def test_deepcopy_of_a_remote_module_has_values_of_its_own() -> None:
    alice = LocalExecutor()
    first = send(nn.Linear(2, 2), alice.put)
    second = copy.deepcopy(first)
    with torch.no_grad():
        second.weight.zero_()
    assert first.weight.get().abs().sum() > 0 and second.weight.get().abs().sum() == 0
    assert isinstance(second.weight, nn.Parameter) and second.get().weight.requires_grad


def test_state_dict_goes_both_ways() -> None:
    alice = LocalExecutor()
    here = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    there = send(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), alice.put)
    there.load_state_dict(here.state_dict())
    again = send(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), alice.put)
    again.load_state_dict(there.state_dict())
    for name, value in again.get().state_dict().items():
        assert torch.equal(value, here.state_dict()[name]), name


def test_changing_the_dtype_of_a_remote_module() -> None:
    alice = LocalExecutor()
    there = send(nn.Linear(4, 3), alice.put).double()
    assert there.weight.dtype is torch.float64 and there.get().weight.dtype is torch.float64
    there(send(torch.randn(2, 4, dtype=torch.float64), alice.put)).sum().backward()
    assert there.weight.grad.get().dtype is torch.float64


@pytest.mark.filterwarnings("ignore:TF32:UserWarning")
def test_an_lstm_is_taken_apart_where_torch_is_told_to() -> None:
    """As one fused operation it does not run at nodes; the error says what to write, and that works."""
    alice, here, x = LocalExecutor(), nn.LSTM(4, 5, batch_first=True), torch.randn(2, 3, 4)
    there, rx = send(here, alice.put), alice.put(x)
    with pytest.raises(OpNotSupported, match=r"mkldnn\.flags\(enabled=False\)"):
        there(rx)
    with torch.backends.mkldnn.flags(enabled=False):
        out = there(rx)[0]
    out.sum().backward()
    here(x)[0].sum().backward()
    assert torch.allclose(out.get(), here(x)[0], atol=1e-6)
    assert torch.allclose(there.weight_ih_l0.grad.get(), here.weight_ih_l0.grad, atol=1e-6)


def test_a_user_s_way_of_copying_a_module_is_kept() -> None:
    class Counted(nn.Linear):
        copies = 0

        def __deepcopy__(self, memo: dict[int, Any]) -> Any:
            type(self).copies += 1
            made = Counted(4, 2)
            memo[id(self)] = made
            made.weight, made.bias = copy.deepcopy(self.weight, memo), copy.deepcopy(self.bias, memo)
            return made

    there = send(Counted(4, 2), LocalExecutor().put)
    before = Counted.copies
    assert torch.equal(copy.deepcopy(there).weight.get(), there.weight.get()) and type(there).copies == before + 1
    assert type(there.get()) is Counted
