"""A result that a committee opens to this node: three components become a value again, if the parties agree on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from grid.errors import InvalidRequest, WireError
from grid.ids import PeerId
from grid.smpc.interpreter import fraction_bits
from grid.smpc.replicated.opening import digest
from grid.tensors import fixed
from grid.tensors.buffers import to_frame, torch_dtype
from grid.tensors.ops import elements
from grid.wire.messages import DeliverShare, ExpectObject, TensorFrame

WORD_BYTES = 8


def check_size(share: DeliverShare, expected: ExpectObject) -> None:
    """Raise `WireError` for a component that cannot belong to the value that is expected."""
    if memoryview(share.words).nbytes != WORD_BYTES * elements(expected.shape):
        raise WireError("a component of a result has another size than the value that is expected")


def put_together(shares: Sequence[DeliverShare], expected: ExpectObject, names: Mapping[PeerId, str]) -> TensorFrame:
    """The value of three components, in the order of the roster, each vouched for by its second holder. Raises `WireError`."""
    first = shares[0]
    if any((share.opening, share.behind, share.transfer) != (first.opening, first.behind, first.transfer) for share in shares):
        raise WireError("the parties of the committee do not say the same of the result that they open to this node")
    if (first.opening.dtype, first.opening.shape) != (expected.dtype, expected.shape):
        raise InvalidRequest("the result that was opened has another shape or dtype than its receiver was told")
    components = [np.frombuffer(share.words, "<u8").astype(np.uint64) for share in shares]
    for number, component in enumerate(components):
        if digest(component) != shares[number - 1].digest:
            holders = " and ".join(names.get(node, node) for node in (expected.roster[number], expected.roster[number - 1]))
            raise WireError(
                f"{holders} do not agree on their component of the result: one of them does not follow the protocol"
            )
    total = torch.from_numpy((components[0] + components[1] + components[2]).view(np.int64)).reshape(expected.shape)
    dtype = torch_dtype(expected.dtype)
    return to_frame(fixed.decode(total, fraction_bits(dtype), dtype), copy=False)


def datasets_behind(share: DeliverShare, names: Mapping[PeerId, str]) -> tuple[str, ...]:
    """The datasets behind a result as its label names them."""
    return tuple(f"{names.get(one.node, one.node)}/{one.dataset}" for one in share.behind)
