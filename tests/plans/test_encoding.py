"""Plans as bytes: stable ids, files, hostile encodings, and the text that people read."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_models import assert_same, classes, cnn, gradient_of, pictures

from grid.errors import InvalidRequest, NotFound, PlanRejected
from grid.plans import encoding
from grid.plans.ir import Plan, decode, encode, validate
from grid.plans.optimizers import SGD
from grid.plans.program import Program, Step
from grid.plans.shapes import check_limits
from grid.plans.trace import trace
from grid.tensors.buffers import torch_dtype
from grid.wire.args import pack_special, unpack_special
from grid.wire.messages import DType, Inline, Ref


def made() -> Plan:
    """A plan with most of what plans can have: constants, sizes, several results, dtypes, a bounded batch."""
    scale = torch.tensor([1.0, -2.0, float("nan")])

    def function(x: torch.Tensor, extra: dict[str, Any]) -> Any:
        n = x.shape[0]
        best = (x.view(n, 3) * scale + extra["b"]).max(1)
        return {"best": best, "mean": x.double().sum(0) / (2 * n - 1), "half": x if n > 4 else -x}

    return trace(function, torch.randn(8, 3), {"b": torch.randn(3), "k": "text"})


MADE = made()


def rows_of(plan: Program) -> list[Any]:
    """The encoding's lists, to be changed and packed again."""
    rows = msgpack.unpackb(encoding.pack(plan), ext_hook=unpack_special)
    assert isinstance(rows, list)
    return rows


def packed(rows: object) -> bytes:
    data = msgpack.Packer(default=pack_special, strict_types=True).pack(rows)
    assert isinstance(data, bytes)
    return data


def test_a_plan_survives_its_encoding() -> None:
    again = decode(encode(MADE))
    assert again == MADE
    assert again.id == MADE.id
    assert again.encoding == MADE.encoding
    assert [step.frees for step in again.steps] == [step.frees for step in MADE.steps]
    x, extra = torch.randn(6, 3), {"b": torch.randn(3), "k": "text"}
    assert_same(again(x, extra), MADE(x, extra))
    assert decode(memoryview(encode(MADE))).id == MADE.id


def test_save_and_load(tmp_path: Path) -> None:
    MADE.save(tmp_path / "a.plan")
    assert Plan.load(tmp_path / "a.plan") == MADE
    (tmp_path / "b.plan").write_bytes(b"no plan")
    with pytest.raises(PlanRejected):
        Plan.load(tmp_path / "b.plan")
    with pytest.raises(NotFound, match=r"c\.plan"):
        Plan.load(tmp_path / "c.plan")


OTHER_PROCESS = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from plan_models import classes, cnn, gradient_of, pictures
from test_encoding import made
from grid.plans.shapes import check_limits
from grid.plans.trace import trace
from grid.tensors.buffers import torch_dtype
module = cnn()
print(trace(gradient_of(module), dict(module.named_parameters()), pictures(4), classes(4)).id, made().id)
"""


def test_ids_are_the_same_in_another_process() -> None:
    module = cnn()
    here = trace(gradient_of(module), dict(module.named_parameters()), pictures(8), classes(8)).id
    command = [sys.executable, "-c", OTHER_PROCESS, str(Path(__file__).parent)]
    out = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert out.stdout.split() == [here, MADE.id]


def test_the_id_is_of_this_format() -> None:
    """The id of a small plan, as written down when the format was fixed: a change here makes every stored plan another one."""
    plan = trace(lambda x: x + 1, torch.zeros(8, 2))
    assert plan.encoding == packed(
        [
            *("grid-plan", 1, "plan", ["x"]),
            ["tuple", [["leaf"]]],
            [["f4", ["n0", 2]]],
            [[0, None]],
            [],
            [["aten.add.Tensor", [Ref(0), 1], [], [1]]],
            [1],
            ["leaf"],
        ]
    )
    assert plan.id == "a5a6fb59779c565d6bdc27a2aff2978cf24b627d51690eeb6bdab6f5da6f3231"


def test_code_reads_like_a_program() -> None:
    offset = torch.tensor([0.5, 1.0])

    def score(params: dict[str, torch.Tensor], x: torch.Tensor) -> Any:
        h = torch.relu(x @ params["in.weight"]) + offset
        return {"mean": h.sum(0) / x.shape[0], "rows": [h.double(), x]}

    assert trace(score, {"in.weight": torch.zeros(4, 2)}, torch.zeros(8, 4)).code == (
        "def score(\n"
        "    params_in_weight: f4[4, 2],  # params['in.weight']\n"
        "    x: f4[n0, 4],\n"
        "):\n"
        "    const = constant([0.5, 1.0], f4[2])\n"
        "    mm = mm(x, params_in_weight)  # f4[n0, 2]\n"
        "    relu = relu(mm)  # f4[n0, 2]\n"
        "    add = relu + const  # f4[n0, 2]\n"
        "    sum = sum(add, dim=[0])  # f4[2]\n"
        "    n0 = x.shape[0]\n"
        "    mean = sum / n0  # f4[2]\n"
        "    rows = _to_copy(add, dtype=f8)  # f8[n0, 2]\n"
        "    return {'mean': mean, 'rows': [rows, x]}\n"
    )
    assert "    # n0 >= 5\n" in MADE.code


def test_code_tells_constants_apart() -> None:
    """Two plans that do different things never have the same text, and nothing is left out without a word."""

    def code_of(constant: torch.Tensor) -> str:
        return trace(lambda x: x + constant, torch.zeros(8, 1)).code

    shown = torch.arange(64.0) / 7
    other = shown.clone()
    other[63] = torch.nextafter(other[63], torch.tensor(torch.inf))
    assert code_of(shown) != code_of(other) and "not shown" not in code_of(shown)
    assert float(code_of(shown).split("], f4[64]")[0].rsplit(", ", 1)[1]) == pytest.approx(9.0, rel=0)
    double = torch.tensor([0.1], dtype=torch.float64)
    assert code_of(double) != code_of(double + 2e-17) and "constant([0.1], f8[1])" in code_of(double)

    large = torch.zeros(65)
    changed = large.clone()
    changed[64] = 1
    assert code_of(large) != code_of(changed), "the digest is of all elements"
    found = hashlib.sha256(large.numpy().tobytes()).hexdigest()[:16]
    assert f"    const = constant(f4[65], sha256='{found}')\n" in code_of(large)
    assert code_of(large).endswith("\n# 65 values of constants are not shown; plan.constant_tensors has them\n")
    assert code_of(torch.tensor(0.1234567890123)) != code_of(torch.tensor(0.1234568))
    scalars = [trace(lambda x, by=by: x * by, torch.zeros(8)).code for by in (0.1234567890123, 0.1234567890124)]
    assert scalars[0] != scalars[1]


def test_constants_can_be_read_in_full_by_the_names_in_the_code() -> None:
    first, second = torch.arange(100.0), torch.ones(100)
    plan = trace(lambda const, x: x * first + const * second, torch.zeros(100), torch.zeros(8, 100))
    tensors = plan.constant_tensors
    assert list(tensors) == ["const_1", "const_2"] and all(f"    {name} = constant(" in plan.code for name in tensors)
    assert torch.equal(tensors["const_1"], first) and torch.equal(tensors["const_2"], second)
    tensors["const_1"].zero_()
    assert torch.equal(plan.constant_tensors["const_1"], first), "copies: a plan does not change"


def test_code_of_a_training_step() -> None:
    """Parameters keep their names, from what comes in to what goes out, and what is returned has a line for each part."""
    params = {"0.weight": torch.zeros(4, 2, requires_grad=True)}
    sgd = SGD(lr=0.1, momentum=0.9)

    def step(params: Any, state: Any, x: torch.Tensor) -> Any:
        loss = (x @ params["0.weight"]).square().sum()
        params, state = sgd.update(params, torch.autograd.grad(loss, list(params.values())), state)
        return {"params": params, "state": state, "loss": loss, "a rather long name that makes it longer": x}

    code = trace(step, params, sgd.init(params), torch.zeros(8, 4)).code
    assert "    params_0_weight: f4[4, 2],  # params['0.weight']\n" in code
    assert "    state_momentum_0_weight: f4[4, 2],  # state['momentum']['0.weight']\n" in code
    assert "    new_params_0_weight = params_0_weight - mul" in code
    assert "    loss = sum(" in code
    assert code.endswith(
        "    return {\n"
        "        'params': {'0.weight': new_params_0_weight},\n"
        "        'state': {'momentum': {'0.weight': new_state_momentum_0_weight}},\n"
        "        'loss': loss,\n"
        "        'a rather long name that makes it longer': x,\n"
        "    }\n"
    )


def test_plans_have_a_short_repr() -> None:
    assert repr(MADE) == f"<Plan function {MADE.id[:12]}: 2 inputs, {len(MADE.steps)} steps>"


# ---------------------------------------------------------------- hostile encodings


def with_step(op: str, args: list[Any], outputs: tuple[int, ...] = (2,), kwargs: list[Any] | None = None) -> list[Any]:
    """A plan of two inputs and one step."""
    rows = rows_of(trace(lambda x, y: x + y, torch.zeros(8, 2), torch.zeros(8, 2)))
    rows[8] = [[op, args, kwargs or [], list(outputs)]]
    rows[9] = [2]
    return rows


@pytest.mark.parametrize(
    ("op", "args", "kwargs", "says"),
    [
        ("aten.nonzero.default", [Ref(0)], [], "not an operation that runs remotely"),
        ("aten.__class__.__mro__", [Ref(0)], [], "not an operation"),
        ("os.system", ["true"], [], "no operation"),
        ("aten.mm.default.__call__", [Ref(0)], [], "no operation"),
        ("sym.eval", [Ref(0)], [], "not an operation"),
        ("aten.add_.Tensor", [Ref(0), Ref(1)], [], "cannot be part of a plan"),
        ("aten.rand.default", [[3]], [], "cannot be part of a plan"),
        ("aten.native_batch_norm.default", [Ref(0), None, None, None, None, True, 0.1, 1e-5], [], "cannot be part of a plan"),
        ("aten.mm.default", [Ref(0)], [], "needs the argument 'mat2'"),
        ("aten.mm.default", [Ref(0), Ref(1), Ref(1)], [], "takes 2 arguments"),
        ("aten.mm.default", [Ref(0), 3], [], "must be a tensor"),
        ("aten.mm.default", [Ref(0), [Ref(1)]], [], "must be a tensor"),
        ("aten.sum.dim_IntList", [Ref(0), [0.5]], [], "whole number"),
        ("aten.sum.dim_IntList", [Ref(0), [Ref(1)]], [], "whole number"),
        ("aten.cat.default", [[Ref(0), "x"]], [], "must be a tensor"),
        ("aten._to_copy.default", [Ref(0)], [["dtype", "f4"]], "must be a dtype"),
        ("aten._to_copy.default", [Ref(0)], [["dtype", DType("c8")]], "no dtype"),
        ("aten._to_copy.default", [Ref(0)], [["device", "cuda"]], "leave it out"),
        ("aten._to_copy.default", [Ref(0)], [["zzz", 1]], "no argument 'zzz'"),
        ("aten.zeros.default", [[1 << 50]], [], "larger than"),
        ("aten.mm.default", [Ref(0), Ref(2)], [], "uses value 2 before it is there"),
        ("aten.mm.default", [Ref(0), Ref(1 << 40)], [], "beyond any plan's numbers"),
        ("aten.mm.default", [Ref(0), Inline(0)], [], "tensor of a message"),
        ("aten.mm.default", [Ref(0), [[[[[[1]]]]]]], [], "deeper"),
        ("sym.size", [Ref(0), 0], [], "which is a size and no tensor"),
        ("sym.size", [0, 0], [], "takes a tensor and a dimension"),
        ("sym.add", [Ref(0), 1], [], "takes numbers"),
        ("sym.add", [1], [], "takes numbers"),
        ("aten.add.Tensor", [Ref(0), Ref(1)], [["alpha", 1], ["alpha", 1]], "not in order"),
    ],
)
def test_hostile_steps(op: str, args: list[Any], kwargs: list[Any], says: str) -> None:
    with pytest.raises(PlanRejected, match=says):
        decode(packed(with_step(op, args, kwargs=kwargs)))


def test_the_step_to_blame_is_in_the_details() -> None:
    with pytest.raises(PlanRejected) as caught:
        decode(packed(with_step("aten.nonzero.default", [Ref(0)])))
    assert caught.value.details == {"step": 0, "op": "aten.nonzero.default"}


@pytest.mark.parametrize(
    ("outputs", "says"),
    [((1,), "a second time"), ((3,), "2 is the next"), ((2, 3), "names 2"), ((), "nothing defines"), ((2, 2), "a second time")],
)
def test_hostile_numbering(outputs: tuple[int, ...], says: str) -> None:
    with pytest.raises(PlanRejected, match=says):
        decode(packed(with_step("aten.add.Tensor", [Ref(0), Ref(1)], outputs)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (0, "other-plan"),
        (1, 2),
        (1, True),
        (2, "no name; import os"),
        (2, "x" * 1000),
        (3, ["a"]),
        (3, ["a", 3]),
        (4, ["leaf"]),
        (4, ["tuple", [["leaf"]]]),
        (4, ["dict", [["a", ["leaf"]], ["a", ["leaf"]]]]),
        (5, [["f4", [8, 2]]]),
        (5, [["f4", ["n1", 2]], ["f4", ["n0", 2]]]),
        (5, [["c8", ["n0", 2]], ["f4", ["n0", 2]]]),
        (5, [["f4", [-1, 2]], ["f4", ["n0", 2]]]),
        (5, [["f4", [1] * 17], ["f4", ["n0", 2]]]),
        (6, []),
        (6, [[3, 2]]),
        (6, [[0, None], [0, None]]),
        (7, [["f4", [2], b"1234567"]]),
        (7, [["f4", [1 << 41], b""]]),
        (7, [["f4", [1 << 30, 1 << 30], b""]]),
        (9, [99]),
        (9, [-1]),
        (9, []),
        (10, ["value", b""]),
        (10, ["set", []]),
    ],
)
def test_hostile_fields(field: int, value: object) -> None:
    rows = with_step("aten.add.Tensor", [Ref(0), Ref(1)])
    assert decode(packed(rows)).steps
    rows[field] = value
    with pytest.raises(PlanRejected):
        decode(packed(rows))


def test_claims_and_depths_cost_nothing() -> None:
    for data in (
        b"\xdd\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff" * 2000,
        b"\x91" * 2000 + b"\x01",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"",
        encode(MADE)[:-1],
        encode(MADE) + b"\x00",
    ):
        with pytest.raises(PlanRejected):
            decode(data)
    deep: Any = ["leaf"]
    for _ in range(500):
        deep = ["list", [deep]]
    with pytest.raises(PlanRejected, match="too deep"):
        decode(packed([*rows_of(MADE)[:10], deep]))


def test_only_one_encoding_of_a_plan_is_read() -> None:
    rows = rows_of(MADE)
    wasteful = msgpack.Packer(default=pack_special, strict_types=True, use_single_float=True).pack(rows)
    assert wasteful == encode(MADE)
    longer = encode(MADE).replace(b"\xa9grid-plan", b"\xd9\x09grid-plan", 1)
    with pytest.raises(PlanRejected, match="canonical"):
        decode(longer)


def test_limits_on_counts_and_bytes() -> None:
    with pytest.raises(PlanRejected, match="larger than the limit of 100"):
        decode(encode(MADE), max_bytes=100)
    step = ["sym.add", [1, 2], [], [2]]
    with pytest.raises(PlanRejected, match="steps"):
        decode(packed([*rows_of(MADE)[:8], [step] * (encoding.MAX_STEPS + 1), [0], ["leaf"]]))


def test_validate_checks_programs_made_by_hand() -> None:
    step = MADE.steps[0]
    with pytest.raises(PlanRejected, match="second time"):
        validate(replace_steps((step, Step(step.op, step.args, step.kwargs, step.outputs))))


def replace_steps(steps: tuple[Step, ...]) -> Program:
    fields = {name: getattr(MADE, name) for name in Program.__dataclass_fields__}
    return replace(Program(**fields), steps=steps)


# ---------------------------------------------------------------- fuzz


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_mutated_bytes_give_a_plan_or_plan_rejected(data: st.DataObject) -> None:
    raw = bytearray(encode(MADE))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        match data.draw(st.sampled_from(["set", "cut", "insert", "copy"])):
            case "set":
                raw[at] = data.draw(st.integers(0, 255))
            case "cut":
                del raw[at : at + data.draw(st.integers(1, 8))]
            case "insert":
                raw[at:at] = data.draw(st.binary(min_size=1, max_size=8))
            case "copy":
                raw[at:at] = raw[at : at + 16]
        if not raw:
            return
    survives_or_is_rejected(bytes(raw))


ANY_VALUE = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(1 << 63), (1 << 64) - 1),
        st.integers(-3, 12),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(["aten.mm.default", "aten.cat.default", "sym.size", "n0", "f4", "leaf", "dict", "value"]),
        st.binary(max_size=8),
        st.integers(0, 12).map(Ref),
        st.sampled_from([DType("f4"), DType("zz"), Inline(0)]),
    ),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_mutated_structure_gives_a_plan_or_plan_rejected(data: st.DataObject) -> None:
    rows = rows_of(MADE)
    target: Any = rows
    while True:
        at = data.draw(st.integers(0, len(target) - 1))
        inner = target[at]
        if not (isinstance(inner, list) and inner) or data.draw(st.integers(0, 3)) == 0:
            break
        target = inner
    match data.draw(st.sampled_from(["set", "drop", "double"])):
        case "set":
            target[at] = data.draw(ANY_VALUE)
        case "drop":
            del target[at]
        case "double":
            target.insert(at, target[at])
    survives_or_is_rejected(packed(rows))


def survives_or_is_rejected(raw: bytes) -> None:
    """What decodes is a plan in every way; all else is `PlanRejected`, and nothing is raised besides."""
    try:
        plan = decode(raw)
    except PlanRejected:
        return
    assert plan.encoding == raw
    assert plan.code
    assert plan.id
    shapes = [[5 if isinstance(size, str) else size for size in spec.sizes] for spec in plan.inputs]
    dtypes = [torch_dtype(spec.dtype) for spec in plan.inputs]
    inputs = [torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in zip(shapes, dtypes, strict=True)]
    with contextlib.suppress(PlanRejected, InvalidRequest):
        check_limits(plan, inputs, max_elements=1 << 28, max_bytes=1 << 30)
