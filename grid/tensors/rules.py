"""Row rules by name, and how one is applied: from the forms that go into a call to the forms that come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from grid.errors import GridError
from grid.tensors import rules_elementwise as e
from grid.tensors import rules_index as i
from grid.tensors import rules_layers as n
from grid.tensors import rules_views as v
from grid.tensors.calls import Call
from grid.tensors.rows import CONST, Form, Mix, Reason, check_operands

Rule = Callable[[Call], list[Form]]

ROW_RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "elementwise": e.elementwise,
        "copy": e.copy,
        "fill": e.fill,
        "constant": e.constant,
        "sequence": e.sequence,
        "random": e.sequence,
        "draw": e.draw,
        "dropout": e.dropout,
        "reduce": e.reduce,
        "extreme": e.extreme,
        "along": e.along,
        "histogram": e.histogram,
        "bucketize": e.bucketize,
        "membership": e.membership,
        "row_free": e.row_free,
        "lists": e.lists,
        "each": e.lists,
        "view": v.view,
        "squeeze": v.view,
        "permute": v.permute,
        "expand": v.expand,
        "repeat": v.repeat,
        "diagonal": v.diagonal,
        "diagonal_backward": v.diagonal_backward,
        "slice": v.slice_,
        "select": v.select,
        "split": v.split,
        "part_scatter": v.part_scatter,
        "part_backward": v.part_backward,
        "cat": v.cat,
        "stack": v.stack,
        "pad": v.pad,
        "spatial": v.spatial,
        "index": i.index,
        "index_select": i.index_select,
        "embedding": i.embedding,
        "embedding_backward": i.embedding_backward,
        "gather": i.gather,
        "scatter": i.scatter,
        "index_put": i.index_put,
        "index_add": i.index_add,
        "index_write": i.index_write,
        "contract": n.contract,
        "outer": n.outer,
        "convolution": n.convolution,
        "convolution_backward": n.convolution_backward,
        "batch_norm": n.batch_norm,
        "batch_norm_backward": n.batch_norm_backward,
        "layer_norm": n.layer_norm,
        "layer_norm_backward": n.layer_norm_backward,
        "group_norm": n.group_norm,
        "group_norm_backward": n.group_norm_backward,
        "attention": n.attention,
        "nll": n.nll,
        "nll_backward": n.nll_backward,
        "loss": n.loss,
        "loss_backward": n.loss_backward,
    }
)
"""Name of a row rule, as `grid.tensors.table` uses it -> rule."""

VALUE_FREE = ("constant", "sequence", "random")
"""Rules that look at no value of their operands, not even of mixed ones."""

NOT_UNDERSTOOD = Reason("a row rule did not understand its arguments")


class RuleBugError(Exception):
    """A rule broke on its arguments. A node takes the result for mixed; tests want to know."""


def judge(call: Call, rules: Mapping[str, Rule] = ROW_RULES, *, strict: bool = False) -> list[Form]:
    """The forms of a call's results, one for each of `call.shapes`.

    What a rule cannot show, or breaks on, is mixed. `strict` raises `RuleBugError` for the latter. A result without
    elements tells nothing and is constant.
    """
    rule_name = call.bound.op.rule
    try:
        if rule_name not in VALUE_FREE:
            for form in call.inputs:
                if form.mixed is not None:
                    raise Mix(*form.mixed)
            check_operands(call.inputs)
        forms = rules[rule_name](call)
        if [form.shape for form in forms] != list(call.shapes):
            raise ValueError(f"shapes {[form.shape for form in forms]} instead of {list(call.shapes)}")
    except Mix as mix:
        forms = [call.space.taint(call.inputs, shape, mix.reason) for shape in call.shapes]
    except GridError:
        raise  # memory for labels has run out; the call fails
    except Exception as bug:
        if strict and all(0 not in shape for shape in call.shapes):
            raise RuleBugError(f"{call.bound.op.name}: {bug!r}") from bug
        forms = [call.space.taint(call.inputs, shape, NOT_UNDERSTOOD) for shape in call.shapes]
    return [call.space.plain(s, CONST) if 0 in s else form for s, form in zip(call.shapes, forms, strict=True)]
