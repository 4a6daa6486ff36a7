"""One client's objects: ids, failures, quotas by memory, and what a write does to the account of an object."""

from __future__ import annotations

import pytest
import torch

from grid.errors import ExecutionFailed, GridError, NotFound, QuotaExceeded
from grid.ids import ObjectId, PlanId
from grid.node.lineage import DERIVED, OWN, Lineage, arguments_hash, dataset_part, digest, plan_results
from grid.node.objects import ObjectStore
from grid.node.pace import Pace
from grid.node.workspace import Workspace
from grid.policy.gate import Origin
from grid.settings import NodeSettings
from grid.wire.messages import Command, Commands, Ref

ONE, TWO, THREE = ObjectId(1), ObjectId(2), ObjectId(3)


def store(**limits: int) -> ObjectStore:
    return ObjectStore(**{"max_objects": 10, "max_bytes": 1000, **limits})


def test_values_come_back_by_id_and_unknown_ids_are_not_found() -> None:
    objects, value = store(), torch.ones(2)
    objects.put(ONE, value, OWN)
    assert objects.get(ONE).value is value
    for wrong in (TWO, ObjectId(0), ObjectId(-1)):
        with pytest.raises(NotFound):
            objects.get(wrong)


def test_a_failed_object_gives_its_error_each_time_afresh() -> None:
    objects = store()
    objects.fail(ONE, ExecutionFailed("broken", op="aten.mm.default"))
    caught = []
    for _ in range(2):
        with pytest.raises(ExecutionFailed, match="broken") as failure:
            objects.get(ONE)
        caught.append(failure.value)
    assert caught[0] is not caught[1] and caught[1].details == {"op": "aten.mm.default"}


def test_memory_is_counted_by_storage() -> None:
    objects, base = store(), torch.zeros(200)  # 800 bytes
    objects.put(ONE, base, OWN)
    objects.put(TWO, base[:1], OWN)
    assert objects.used_bytes == 800
    objects.free([ONE])
    assert objects.used_bytes == 800  # the view keeps all of it alive
    with pytest.raises(QuotaExceeded):
        objects.put(THREE, torch.zeros(51), OWN)
    objects.free([TWO])
    assert objects.used_bytes == 0 and len(objects) == 0
    objects.put(THREE, torch.zeros(1).expand(10_000), OWN)
    assert objects.used_bytes == 4


def test_a_result_without_room_is_refused_before_memory_is_taken_for_it() -> None:
    """More than a process can address: to try is another error than to be refused."""
    failed: list[GridError] = []
    settings = NodeSettings(max_op_elements=1 << 60, max_bytes_per_client=4 << 20)
    space = Workspace(sources={}, settings=settings, pace=Pace(settings), on_failed=lambda number, error: failed.append(error))
    for outputs, refused in [((TWO,), "may take 4194304: free some"), ((ObjectId(0),), "memory")]:
        command = Command(op="aten.ones.default", args=[[1 << 40, 1 << 6]], kwargs={}, outputs=outputs)
        space.handle(Commands(first=1, commands=(command,)))
        assert isinstance(failed[-1], QuotaExceeded) and refused in failed[-1].message
    space.handle(Commands(first=2, commands=(Command(op="aten.ones.default", args=[[1 << 20]], kwargs={}, outputs=(ONE,)),)))
    views = [Command(op="aten.view.default", args=[Ref(1), [1 << 10, 1 << 10]], kwargs={}, outputs=(TWO,))]
    views.append(Command(op="aten.expand.default", args=[Ref(1), [1 << 10, 1 << 20]], kwargs={}, outputs=(THREE,)))
    space.handle(Commands(first=3, commands=tuple(views)))
    assert len(failed) == 2  # views take no memory, however large they are


def test_the_number_of_objects_is_bounded_failures_included() -> None:
    objects = store(max_objects=2)
    objects.put(ONE, torch.ones(1), OWN)
    objects.fail(TWO, ExecutionFailed("x"))
    with pytest.raises(QuotaExceeded):
        objects.put(THREE, torch.ones(1), OWN)
    objects.fail(THREE, ExecutionFailed("x"))
    assert len(objects) == 2
    objects.put(TWO, torch.ones(1), OWN)  # the same id again takes no more room
    assert len(objects) == 2


def test_freeing_unknown_ids_changes_nothing() -> None:
    objects = store()
    objects.put(ONE, torch.ones(1), OWN)
    objects.free([TWO, ObjectId(-5)])
    assert len(objects) == 1 and objects.failure(ONE) is None
    objects.free([ONE, ONE])
    assert len(objects) == 0 and objects.used_bytes == 0


def test_memory_of_a_dataset_is_not_counted() -> None:
    objects, rows = store(), torch.zeros(10_000)
    objects.put(ONE, rows, OWN, counted=False)
    objects.put(TWO, rows[:5], OWN)
    assert objects.used_bytes == 0


def test_one_tensor_may_have_two_ids() -> None:
    objects, value = store(), torch.zeros(2)
    objects.put(ONE, value, OWN)
    objects.put(TWO, value, OWN)
    objects.free([ONE])
    assert objects.get(TWO).value is value and objects.used_bytes == 8


def test_a_write_takes_away_the_account_of_all_that_shares_the_memory() -> None:
    objects, base = store(), torch.zeros(4)
    (result,) = plan_results(PlanId("p"), [(base, dataset_part("features", ""))], 1)
    objects.put(ONE, base, result)
    objects.put(TWO, base.view(2, 2), OWN)
    objects.put(THREE, torch.zeros(4), result)
    objects.written(base.view(2, 2))
    assert objects.get(ONE).lineage == DERIVED and objects.get(TWO).lineage == DERIVED
    assert objects.get(THREE).lineage == result
    assert objects.sharing(base) == [ONE, TWO]


def test_a_digest_is_kept_until_something_is_written_or_the_id_names_another_value() -> None:
    objects, base = store(), torch.zeros(4)
    objects.put(ONE, base, OWN)
    objects.put(TWO, base.view(2, 2), OWN)
    before = objects.digest(ONE)
    assert before == digest(torch.zeros(4)) == objects.digest(ONE) != objects.digest(TWO)
    base.add_(1)
    objects.written(base.view(2, 2))
    assert objects.digest(ONE) == digest(torch.ones(4)) != before
    objects.put(ONE, torch.zeros(4), OWN)
    assert objects.digest(ONE) == before
    objects.free([ONE])
    with pytest.raises(NotFound):
        objects.digest(ONE)


def test_results_of_the_client_s_own_values_have_no_account() -> None:
    assert plan_results(PlanId("p"), [(torch.zeros(2), None)], 2) == [OWN, OWN]


def test_the_argument_hash_sees_content_dtype_shape_order_and_part() -> None:
    features = dataset_part("features", "")
    part = torch.randn(5, 2)
    base = arguments_hash([(part, features), (torch.zeros(2), None)])
    assert base == arguments_hash([(torch.randn(9, 2), features), (torch.zeros(2), None)])  # other rows, same program
    others = [
        [(part, features), (torch.tensor([0.0, 1.0]), None)],
        [(part, features), (torch.zeros(2, dtype=torch.float64), None)],
        [(part, features), (torch.zeros(2, 1), None)],
        [(torch.zeros(2), None), (part, features)],
        [(part, dataset_part("targets", "")), (torch.zeros(2), None)],
        [(part, dataset_part("column", "features")), (torch.zeros(2), None)],
        [(part, features)],
        [(part, plan_results(PlanId("p"), [(part, features)], 1)[0]), (torch.zeros(2), None)],
    ]
    hashes = [arguments_hash(inputs) for inputs in others]
    assert len({base, *hashes}) == len(others) + 1


def test_results_name_their_plans_and_differ_by_output() -> None:
    features, value = dataset_part("features", ""), torch.zeros(2)
    first, second = plan_results(PlanId("p"), [(value, features), (value, None)], 2)
    assert first.origin == Origin(plans=frozenset({PlanId("p")}), plan=PlanId("p")) and first.arguments == second.arguments
    assert arguments_hash([(value, first)]) != arguments_hash([(value, second)])
    (later,) = plan_results(PlanId("q"), [(value, first)], 1)
    assert later.origin == Origin(plans=frozenset({PlanId("p"), PlanId("q")}), plan=PlanId("q")) and later.arguments


def test_results_of_derived_objects_are_derived() -> None:
    value = torch.zeros(2)
    for lineage in (DERIVED, OWN):  # OWN on an object with a label: something labelled was written into it
        (result,) = plan_results(PlanId("p"), [(value, lineage)], 1)
        assert result == Lineage(Origin(plans=None, plan=PlanId("p"))) and not result.arguments
        (later,) = plan_results(PlanId("q"), [(value, result)], 1)
        assert later.origin.plans is None and not later.arguments
