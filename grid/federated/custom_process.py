"""The process of a user's own strategy: it runs one plan on vectors that it is given, under limits, and knows nothing else."""

from __future__ import annotations

import os
import sys

import torch

from grid.confinement import confine
from grid.errors import GridError, InvalidRequest, LocalProtocolError, QuotaExceeded
from grid.federated.custom_messages import (
    FROM_STRATEGY,
    TO_STRATEGY,
    ApplyStrategy,
    BeginStrategy,
    Doubles,
    Vectors,
    frames_of,
    vectors_of,
)
from grid.plans import interpret
from grid.plans.ir import Plan
from grid.plans.ir import decode as decode_plan
from grid.plans.shapes import check_limits
from grid.plans.trees import LEAF
from grid.rpc.dispatch import public_error
from grid.tensors.exhausted import is_exhausted
from grid.tensors.uncompiled import without_compiler
from grid.transport.pipes import BlockingPipe, end_of
from grid.wire.codec import decode, encode
from grid.wire.messages import ErrorInfo, Failure, Message

MAX_FRAME_BYTES = 1 << 36
OPEN_FILES = 64
NICENESS = 5


class StrategyProcess:
    """The loop of the process."""

    def __init__(self, pipe: BlockingPipe, parent: int) -> None:
        self._pipe = pipe
        self._parent = parent
        self._begun: BeginStrategy | None = None
        self._plan: Plan | None = None

    def run(self) -> None:
        """Until the gateway is gone, which raises `EOFError`."""
        while True:
            message = decode(self._pipe.receive(), TO_STRATEGY).message
            try:
                answer: Message = self._answer(message)
            except Exception as error:
                answer = Failure(error=ErrorInfo.of(_explained(error, message)))
            self._pipe.send([encode(answer, table=FROM_STRATEGY)])

    def _answer(self, message: Message) -> Vectors:
        match message:
            case BeginStrategy():
                confine(self._parent, memory_bytes=message.max_bytes, open_files=OPEN_FILES, niceness=NICENESS)
                self._plan = checked(message)
                self._begun = message
                return Vectors(vectors=())
            case ApplyStrategy() if self._begun is not None and self._plan is not None:
                count, size = self._begun.state + 2, self._begun.size
                return Vectors(vectors=frames_of(_run(self._plan, vectors_of(message.vectors, count, size))))
        raise LocalProtocolError("a strategy is asked before it has begun")


def checked(message: BeginStrategy) -> Plan:
    """The plan, if it takes and gives what a strategy does, within its limits."""
    plan = decode_plan(message.plan)
    takes, gives = plan.takes.children, plan.gives.children
    shapes = len(takes) == 3 and takes[:2] == (LEAF, LEAF) and takes[2].children == (LEAF,) * message.state
    results = len(gives) == 2 and gives[0] == LEAF and gives[1].children == (LEAF,) * message.state
    if not shapes or not results:
        raise InvalidRequest(
            "the strategy's plan does not take (weights, mean update, state) and give (weights, state); make it with"
            " grid.CustomStrategy"
        )
    vectors = [torch.empty(message.size, dtype=torch.float64, device="meta") for _ in range(message.state + 2)]
    run = check_limits(
        plan, vectors, max_elements=message.max_elements, max_bytes=message.max_bytes, max_steps=message.max_steps
    )
    if any(tuple(one.shape) != (message.size,) or one.dtype != torch.float64 for one in run.outputs):
        raise InvalidRequest("the strategy gives vectors of another size or dtype than it was given")
    return plan


def _run(plan: Plan, vectors: list[Doubles]) -> list[Doubles]:
    with torch.no_grad():
        results = interpret.run(plan, [torch.from_numpy(vector) for vector in vectors])
    return [result.contiguous().numpy() for result in results]


def _explained(error: Exception, message: Message) -> GridError:
    if is_exhausted(error):
        return QuotaExceeded("the strategy took more memory than it may; work on fewer or smaller tensors")
    return public_error(error, message)


def main() -> None:
    """`python -m grid.federated.custom_process FD PARENT`."""
    torch.set_num_threads(1)
    without_compiler()
    try:
        StrategyProcess(BlockingPipe(end_of(int(sys.argv[1])), MAX_FRAME_BYTES), int(sys.argv[2])).run()
    except EOFError:
        os._exit(0)


if __name__ == "__main__":
    main()
