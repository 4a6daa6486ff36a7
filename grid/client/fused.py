"""Operations that torch's modules use in evaluation mode alone, written with operations of the op table.

`nn.TransformerEncoderLayer` and `nn.MultiheadAttention` call one fused operation when no gradient is asked for. These have
no row rules at nodes; what they compute is what the modules compute in training mode, and that is written out here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

KEY_PADDING_MASK = 1
"""`mask_type` of a mask of shape (batch, keys); 0 is (queries, keys), 2 is (batch, heads, queries, keys)."""


def _attend(
    query: Tensor, key: Tensor, value: Tensor, heads: int, proj: tuple[Tensor, Tensor], mask: Tensor | None, mask_type: int | None
) -> tuple[Tensor, Tensor]:
    """Multi-head attention on projected (batch, length, width) tensors: the output, and weights (batch, heads, queries, keys)."""
    split = [part.reshape(*part.shape[:2], heads, -1).transpose(1, 2) for part in (query, key, value)]
    scores = split[0] @ split[1].transpose(2, 3) / math.sqrt(split[0].shape[3])
    if mask is not None:
        if mask_type == KEY_PADDING_MASK:
            mask = mask[:, None, None, :]
        scores = scores.masked_fill(mask, -math.inf) if mask.dtype is torch.bool else scores + mask
    weights = scores.softmax(3)
    return functional.linear((weights @ split[2]).transpose(1, 2).flatten(2), *proj), weights


def multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim: int,
    heads: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    mask: Tensor | None = None,
    need_weights: bool = True,
    average_weights: bool = True,
    mask_type: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`aten._native_multi_head_attention`."""
    weights, biases = qkv_weight.chunk(3), qkv_bias.chunk(3)
    q, k, v = (functional.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
    out, attention = _attend(q, k, v, heads, (proj_weight, proj_bias), mask, mask_type)
    if not need_weights:
        return out, None
    return out, attention.mean(1) if average_weights else attention


def encoder_layer(
    src: Tensor,
    embed_dim: int,
    heads: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    norm1_weight: Tensor,
    norm1_bias: Tensor,
    norm2_weight: Tensor,
    norm2_bias: Tensor,
    linear1_weight: Tensor,
    linear1_bias: Tensor,
    linear2_weight: Tensor,
    linear2_bias: Tensor,
    mask: Tensor | None = None,
    mask_type: int | None = None,
) -> Tensor:
    """`aten._transformer_encoder_layer_fwd`."""
    norms = ((norm1_weight, norm1_bias), (norm2_weight, norm2_bias))

    def norm(x: Tensor, place: int) -> Tensor:
        return functional.layer_norm(x, (embed_dim,), *norms[place], eps)

    def attention(x: Tensor) -> Tensor:
        return multi_head_attention(
            x, x, x, embed_dim, heads, qkv_weight, qkv_bias, proj_weight, proj_bias, mask, False, mask_type=mask_type
        )[0]

    def feed_forward(x: Tensor) -> Tensor:
        hidden = functional.linear(x, linear1_weight, linear1_bias)
        hidden = functional.gelu(hidden) if use_gelu else functional.relu(hidden)
        return functional.linear(hidden, linear2_weight, linear2_bias)

    if norm_first:
        src = src + attention(norm(src, 0))
        return src + feed_forward(norm(src, 1))
    src = norm(src + attention(src), 0)
    return norm(src + feed_forward(src), 1)


def is_left_aligned(*_: Any) -> bool:
    """`aten._nested_tensor_from_mask_left_aligned` asks for values; without them, the mask is taken as it is."""
    return False


FUSED: Mapping[Any, Callable[..., Any]] = {
    torch.ops.aten._nested_tensor_from_mask_left_aligned.default: is_left_aligned,
    torch.ops.aten._native_multi_head_attention.default: multi_head_attention,
    torch.ops.aten._transformer_encoder_layer_fwd.default: encoder_layer,
}
