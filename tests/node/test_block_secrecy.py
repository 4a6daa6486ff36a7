"""Which rows are in which secret block shows in no answer of a node: the same question about any rows is answered alike."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import torch
from node_mesh import RawClient, client, dataset, mesh

from grid.errors import GridError, ReleaseDenied
from grid.wire.messages import Ref

ROWS, BLOCK = 40, 10

aten = torch.ops.aten


@pytest.fixture
async def raw() -> AsyncIterator[RawClient]:
    held = dataset(ROWS, 3, release="aggregate", max_elements=10_000)
    async with mesh({"alice": [held]}) as nodes, client(nodes, "alice") as session:
        yield session


Question = Callable[[RawClient, Ref, Ref, int], Awaitable[Ref]]
"""Makes a value of the dataset, of one of its blocks, and of the rows from a position on."""


async def rows(raw: RawClient, x: Ref, start: int, count: int) -> Ref:
    made: Ref = await raw.run(aten.slice.Tensor, x, 0, start, start + count)
    return made


async def total(raw: RawClient, x: Ref) -> Ref:
    made: Ref = await raw.run(aten.sum.dim_IntList, x, [0])
    return made


async def joined(raw: RawClient, x: Ref, block: Ref, start: int) -> Ref:
    made: Ref = await raw.run(aten.cat.default, [block, await rows(raw, x, start, 2)])
    return made


async def sums_added(raw: RawClient, x: Ref, block: Ref, start: int) -> Ref:
    made: Ref = await raw.run(aten.add.Tensor, await total(raw, block), await total(raw, await rows(raw, x, start, BLOCK)))
    return made


async def aligned(raw: RawClient, x: Ref, block: Ref, start: int) -> Ref:
    made: Ref = await raw.run(aten.mul.Tensor, block, await rows(raw, x, start, BLOCK))
    return made


async def sent_back(raw: RawClient, x: Ref, block: Ref, start: int) -> Ref:
    await rows(raw, x, start, BLOCK)  # an order that the gradient could have been cut from
    made: Ref = await raw.run(aten.slice_backward.default, block, [ROWS, 3], 0, start, start + BLOCK, 1)
    return made


async def written_over(raw: RawClient, x: Ref, block: Ref, start: int) -> Ref:
    target: Ref = await raw.run(aten.clone.default, await rows(raw, x, start, BLOCK))
    await raw.run(aten.copy_.default, target, block, outputs=0)
    return target


async def written_out(raw: RawClient, x: Ref, block: Ref, start: int) -> Ref:
    target = await total(raw, await rows(raw, x, start, BLOCK))
    of_block = await total(raw, block)
    await raw.run(aten.maximum.out, of_block, of_block, out=target, outputs=0)
    return target


async def written_into_a_part(raw: RawClient, x: Ref, block: Ref, start: int) -> Ref:
    sums = await total(raw, await rows(raw, x, start, BLOCK))
    kept: Ref = await raw.run(aten.clone.default, sums)
    part: Ref = await raw.run(aten.slice.Tensor, kept, 0, 0, 1)
    first: Ref = await raw.run(aten.slice.Tensor, await total(raw, block), 0, 0, 1)
    await raw.run(aten.copy_.default, part, first, outputs=0)
    return kept


async def part_of_a_block(raw: RawClient, x: Ref, block: Ref, start: int) -> Ref:
    whole_and_block: Ref = await raw.run(aten.add.Tensor, x, await total(raw, block))
    return await total(raw, await rows(raw, whole_and_block, start, BLOCK))


QUESTIONS: dict[str, Question] = {
    "joined": joined,
    "sums added": sums_added,
    "aligned": aligned,
    "sent back": sent_back,
    "written over": written_over,
    "written by out=": written_out,
    "written into a part": written_into_a_part,
    "rows of what a block went into": part_of_a_block,
}


async def answer(raw: RawClient, ref: Ref) -> tuple[object, ...]:
    """All that a client hears of a value."""
    described = await raw.describe(ref)
    with pytest.raises(ReleaseDenied) as caught:
        await raw.get(ref)
    text = re.sub(r"command \d+", "command", f"{caught.value.message} {sorted(caught.value.details.items())}")
    return described.axis, described.reason, described.datasets, text


@pytest.mark.parametrize("name", QUESTIONS)
async def test_every_range_of_rows_gets_the_same_answer(raw: RawClient, name: str) -> None:
    """Of twenty ranges from different rows on, some share rows with the block and some do not, whatever the cut."""
    x, block = await raw.open(), await raw.open(blocks=(0,), rows=BLOCK)
    answers = {await answer(raw, await QUESTIONS[name](raw, x, block, start)) for start in range(0, ROWS - BLOCK + 1, 2)}
    assert len(answers) == 1, answers
    assert "batches of secret blocks" in str(answers)


async def test_rows_are_not_picked_out_of_a_block_by_position(raw: RawClient) -> None:
    block = await raw.open(blocks=(0, 1), rows=2 * BLOCK)
    picked = [
        await rows(raw, block, 0, BLOCK),
        await raw.run(aten.index_select.default, block, 0, torch.arange(2 * BLOCK - 1)),
        (await raw.run(aten.split.Tensor, block, BLOCK, outputs=2))[0],
        await raw.run(aten.select.int, block, 0, 3),
    ]
    for ref in picked:
        described = await raw.describe(ref)
        assert described.axis == -2 and "batches of secret blocks" in described.reason
    whole: Ref = await raw.run(aten.slice.Tensor, block, 0, 0, 2 * BLOCK)
    assert (await raw.describe(whole)).axis == 0


async def test_all_blocks_in_some_sequence_are_never_the_dataset_in_its_own(raw: RawClient) -> None:
    x, blocks = await raw.open(), await raw.open(blocks=(0, 1, 2, 3), rows=ROWS)
    assert (await raw.describe(await raw.run(aten.add.Tensor, x, blocks))).axis == -2
    both = await raw.run(aten.add.Tensor, await total(raw, x), await total(raw, blocks))
    assert (await raw.get(both)).shape == (3,)


async def test_blocks_meet_blocks_by_their_numbers(raw: RawClient) -> None:
    first, again = await raw.open(blocks=(0, 1), rows=20), await raw.open(blocks=(0, 1), rows=20)
    shared, other = await raw.open(blocks=(1, 2), rows=20), await raw.open(blocks=(2, 3), rows=20)
    assert (await raw.describe(await raw.run(aten.add.Tensor, first, again))).axis == 0
    assert (await raw.describe(await raw.run(aten.cat.default, [first, other]))).axis == 0
    assert (await raw.describe(await raw.run(aten.cat.default, [first, shared]))).axis == -2
    both = await raw.run(aten.add.Tensor, await total(raw, first), await total(raw, shared))
    await raw.get(both)


@pytest.mark.parametrize("blocks_first", [True, False])
async def test_what_was_released_before_answers_no_question_about_the_other_kind(raw: RawClient, blocks_first: bool) -> None:
    x = await raw.open()
    parts = [await rows(raw, x, start, 20) for start in range(0, 21)]
    batches = [await raw.open(blocks=pair, rows=20) for pair in ((0, 1), (1, 2), (2, 3), (0, 3))]
    first, then = (batches, parts) if blocks_first else (parts, batches)
    await raw.get(await total(raw, first[0]))
    answers: set[str] = set()
    for ref in then:
        try:
            await raw.get(await total(raw, ref))
        except GridError as error:
            answers.add(f"{error.message} {sorted(error.details.items())}")
        else:
            answers.add("given")
    assert len(answers) == 1 and "given" not in answers, answers
    await raw.get(await total(raw, x))  # all rows: nothing was chosen


async def test_the_only_block_is_the_whole_dataset() -> None:
    held = dataset(15, 3, release="aggregate")
    async with mesh({"alice": [held]}) as nodes, client(nodes, "alice") as raw:
        x, block = await raw.open(), await raw.open(blocks=(0,), rows=15)
        half = await rows(raw, x, 0, 10)
        assert (await raw.describe(await raw.run(aten.add.Tensor, x, block))).axis == 0
        both = await raw.run(aten.add.Tensor, await total(raw, half), await total(raw, block))
        assert (await raw.describe(both)).axis == -1
