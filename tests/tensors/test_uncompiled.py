"""A process that compiles nothing does not load torch's compiler, and still gets it where something asks for more."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
import torch
from grid.tensors.uncompiled import without_compiler

without_compiler()
x = torch.empty(4, 3, device="meta")
assert (x.neg() + 1).shape == x.shape and (x @ x.T).shape == (4, 4)
loss = torch.nn.functional.cross_entropy(torch.zeros(2, 3, requires_grad=True), torch.tensor([0, 1]))
loss.backward()
assert "torch._dynamo.eval_frame" not in sys.modules, "the compiler was loaded"

import torch._dynamo

assert torch._dynamo.is_compiling() is False
assert "torch._dynamo.eval_frame" in sys.modules and sys.modules["torch._dynamo"].__file__
without_compiler()
assert sys.modules["torch._dynamo"].__file__, "what is loaded stays"
"""


def test_the_compiler_is_loaded_when_more_is_asked_of_it_and_not_before() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
