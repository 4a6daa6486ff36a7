"""The text of `docs/reference/ops.md`, from the op table: what may run remotely, what reaches it, how rows go through it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from grid.plans.functions import FUNCTIONS
from grid.plans.layers import DROPOUTS, RECURRENT
from grid.tensors.ops import OPS, Op
from grid.tensors.rules import ROW_RULES
from grid.tensors.table import INSTEAD, PRIVATE_BOUNDS

_HEAD = """\
# Operations

Made from the op table (`grid/tensors/table.py`) by `make docs`. These {count} operations of PyTorch, {names} without their
overloads, are all that runs remotely: command by command through pointers, and as steps of plans. PyTorch takes most functions
and layers apart into these below autograd, so that gradients and optimizers are made of them, too.

Each group below follows one **row rule**: what the result says about the rows of datasets that went in ([labels](../labels.md)).
**Bounds** are checked before an operation runs, the size of its results always; those marked * read values, so that an error
which they raise may tell something about rows, and is not told where the value itself may not leave. **In plans**: operations
that write to a tensor (their names end in `_`) and ones that draw random numbers run by pointer only; a plan writes nothing, and
draws its dropout masks where it runs.
"""

_TORCH: Mapping[str, str] = {
    "_adaptive_avg_pool2d": "F.adaptive_avg_pool2d",
    "_adaptive_avg_pool3d": "F.adaptive_avg_pool3d",
    "_batch_norm_no_update": "F.batch_norm",
    "_batch_norm_with_update": "F.batch_norm",
    "_batch_norm_with_update_functional": "F.batch_norm",
    "_linalg_check_errors": "checks of torch.linalg",
    "_linalg_det": "torch.linalg.det",
    "_linalg_eigh": "torch.linalg.eigh",
    "_linalg_slogdet": "torch.linalg.slogdet",
    "_linalg_solve_ex": "torch.linalg.solve",
    "_linalg_svd": "torch.linalg.svd",
    "_log_softmax": "F.log_softmax, F.cross_entropy",
    "_native_batch_norm_legit": "F.batch_norm",
    "_native_batch_norm_legit_functional": "F.batch_norm",
    "_native_batch_norm_legit_no_training": "F.batch_norm",
    "_prelu_kernel": "F.prelu",
    "_safe_softmax": "F.scaled_dot_product_attention with a mask",
    "_scaled_dot_product_flash_attention_for_cpu": "F.scaled_dot_product_attention, nn.MultiheadAttention",
    "_softmax": "torch.softmax",
    "_to_copy": "Tensor.to, .float(), .long()",
    "_unsafe_view": "Tensor.reshape",
    "addmm": "torch.addmm, nn.Linear",
    "alias": "what gives its argument back",
    "bmm": "torch.bmm, torch.matmul, torch.einsum",
    "convolution": "F.conv1d, F.conv2d, F.conv3d, F.conv_transpose2d",
    "copy": "assignments such as x[:, 0] = y, in plans",
    "embedding_dense": "F.embedding",
    "lift_fresh": "torch.tensor inside a function",
    "lift_fresh_copy": "torch.tensor inside a function",
    "linalg_cholesky_ex": "torch.linalg.cholesky",
    "linalg_inv_ex": "torch.linalg.inv",
    "linalg_lu_factor_ex": "torch.linalg.lu_factor",
    "linalg_vector_norm": "torch.linalg.vector_norm, Tensor.norm",
    "log_sigmoid": "F.logsigmoid",
    "log_sigmoid_forward": "F.logsigmoid",
    "max_pool2d_with_indices": "F.max_pool2d",
    "max_pool3d_with_indices": "F.max_pool3d",
    "mm": "torch.mm, torch.matmul, torch.einsum",
    "native_batch_norm": "F.batch_norm",
    "native_dropout": "F.dropout, nn.Dropout",
    "native_group_norm": "F.group_norm",
    "native_layer_norm": "F.layer_norm",
    "nll_loss2d_forward": "F.nll_loss and F.cross_entropy of pictures",
    "nll_loss_forward": "F.nll_loss, F.cross_entropy",
    "nll_loss2d": "F.nll_loss of pictures",
    "reflection_pad2d": "F.pad(mode='reflect')",
    "replication_pad2d": "F.pad(mode='replicate')",
    "select": "indexing: x[:, 3]",
    "slice": "indexing: x[2:5]",
    "index": "indexing by a tensor or list: x[rows], x[:, [0, 2]]",
    "index_put": "gradients of indexing, x[index] = y in plans",
    "view": "Tensor.view, reshape, flatten, unflatten",
    "upsample_bilinear2d": "F.interpolate(mode='bilinear')",
    "upsample_nearest2d": "F.interpolate(mode='nearest')",
}
"""Operation without overload and without `_backward` -> what reaches it, where its own name does not say."""

_BOUNDS: Mapping[str, str] = {
    "outputs": "",
    "pieces": "at most 4,096 pieces",
    "strides": "strides without gaps and overlap",
    "index": "indices of whole numbers, inside the dimension; values broadcast to the place",
    "dim_index": "indices of whole numbers, inside the dimension; other sizes fit",
    "embedding": "indices inside the table",
    "embedding_backward": "indices inside the table; gradient and indices fit",
    "classes": "classes from 0 to their number, or the ignored one; weights fit",
    "gradient": "the gradient and saved indices are what the forward operation would make",
    "upsample": "scales between 2^-10 and 2^10",
    "layer_norm": "the normalised shape, parameters and statistics fit",
    "group_norm": "groups divide the channels; parameters and statistics fit",
    "batch_norm": "parameters and statistics fit the channels",
    "convolution": "at most 65,536 of padding; weights, gradient and mask fit",
    "attention": "no empty dimension; queries, keys, values and mask fit",
    "sequence": "finite numbers",
    "probability": "a chance between 0 and 1, of a floating-point tensor",
    "pivots": "pivots inside the matrix",
    "unsorted": "no sorter",
    "floats": "floating-point tensors; targets fit",
    "histogram": "at least one bin; a finite range in order",
    "part": "the part has the shape that the forward operation takes out",
    "target": "the target has the result's shape already",
    "chances": "chances between 0 and 1",
    "product": "what is added is broadcast to the product, not the other way",
    "quotient": "no overflow of whole numbers",
}
"""Bounds -> what is checked, in a few words."""


_PLACES = {"torch": torch, "torch.linalg": torch.linalg, "torch.special": torch.special, "F": F, "Tensor": Tensor}


def ops_page() -> str:
    """The page."""
    bases = {op.base.rstrip("_") for op in OPS.values()}
    lines = [_HEAD.format(count=len(OPS), names=len(bases))]
    for rule, explanation in _rules().items():
        lines += [f"## {rule}", "", explanation, "", "| operation | overloads | reached by | bounds | in plans |"]
        lines.append("|---|---|---|---|---|")
        lines += sorted(_rows(rule))
        lines.append("")
    lines += [
        "## In other words, in plans",
        "",
        "While a function is traced, these are put into operations of the table, with the same results and gradients:",
        "",
        ", ".join(_code(name) for name in sorted({_named(func) for func in (*FUNCTIONS, *DROPOUTS, *RECURRENT)})) + ".",
        "",
        "## Not there",
        "",
        "What people reach for and does not run remotely, and what to write instead; the error says the same.",
        "",
        "| operation | instead |",
        "|---|---|",
        *(f"| `{name}` | {advice[0].upper()}{advice[1:]} |" for name, advice in sorted(INSTEAD.items())),
    ]
    return "\n".join(lines) + "\n"


def _rules() -> dict[str, str]:
    """Row rules in the order of the table, with the first paragraph of what each says of itself."""
    used = {op.rule for op in OPS.values()}
    told = {name: (inspect.getdoc(rule) or "").split("\n\n")[0] for name, rule in ROW_RULES.items() if name in used}
    return {name: " ".join(text.split()) for name, text in told.items()}


def _rows(rule: str) -> Iterator[str]:
    """One line for an operation with its overloads and its form that writes."""
    found: dict[tuple[str, str], list[Op]] = {}
    for op in OPS.values():
        if op.rule == rule:
            found.setdefault((op.base.rstrip("_"), op.bounds), []).append(op)
    for (base, bounds), ops in found.items():
        names = ", ".join(_code(name) for name in dict.fromkeys(op.base for op in ops))
        overloads = dict.fromkeys(op.name.split(".")[2] for op in ops)
        kinds = " ".join(_code(overload) for overload in overloads if overload != "default")
        star = "*" if bounds in PRIVATE_BOUNDS else ""
        plans = "yes" if any(op.plannable for op in ops) else "pointer only"
        yield f"| {names} | {kinds} | {reached_by(base)} | {_BOUNDS[bounds]}{star} | {plans} |"


def reached_by(base: str) -> str:
    """Functions of PyTorch that come down to an operation, given without the underscore of one that writes; '' for none."""
    if base.startswith("_foreach"):
        return "optimizers of `torch.optim`"
    if base.endswith(("_backward", "_backward_data")):
        forward = reached_by(base.removesuffix("_data").removesuffix("_backward"))
        return f"gradients of {forward}" if forward else ""
    if base in _TORCH:
        return ", ".join(_code(part) if _is_code(part) else part for part in _TORCH[base].split(", "))
    for where, module in _PLACES.items():
        short = base.removeprefix("linalg_") if module is torch.linalg else base.removeprefix("special_")
        for spelled in (short, f"{short}_"):
            if hasattr(module, spelled) and not spelled.startswith("_"):
                return _code(f"{where}.{spelled}")
    return ""


def _code(text: str) -> str:
    return f"`{text}`"


def _is_code(text: str) -> bool:
    return text.startswith(("torch.", "F.", "nn.", "Tensor.", ".")) and " " not in text


def _named(func: object) -> str:
    """How people write a function."""
    name = str(getattr(func, "__name__", "")).lstrip("_")
    if getattr(F, name, None) is func:
        return f"F.{name}"
    if getattr(torch.linalg, name.removeprefix("linalg_"), None) is func:
        return f"torch.linalg.{name.removeprefix('linalg_')}"
    return f"Tensor.{name}" if getattr(Tensor, name, None) is func else f"torch.{name}"
