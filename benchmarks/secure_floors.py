"""What a secure workload cannot do without: its rounds, its bytes and its arithmetic, each by itself. Prints JSON lines.

    python -m benchmarks.secure_floors [WORKLOAD ...]

`rounds_s` is the number of rounds times the time of an empty sealed round between three processes, `bytes_s` the bytes of a
party over the rate of large messages between them, `work_s` the processor time of all three parties in one process, without
links, spread over two cores. `floor` is their sum: what is beyond it is waiting for one another, and whatever the parts cost
more when mixed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

from benchmarks.measure import commit, machine
from benchmarks.secure_processes import prepare, run_processes, shares
from benchmarks.secure_workloads import GOALS, NAMES, workload
from grid.smpc.kernels.memory import keep_large_blocks
from grid.smpc.local import fresh_keystreams, run_parties
from grid.smpc.party import PARTIES, Party
from grid.smpc.replicated.protocol import Replicated

CORES = 2
ENOUGH_S = 0.5


def link_costs() -> tuple[float, float]:
    """Seconds of an empty round, and of a byte that each party sends."""
    lines = run_processes(["empty_round", "round_of_4_mb"], 7)[0]
    empty, large = (min(line["seconds"]) for line in lines)
    return empty, (large - empty) / lines[1]["bytes_sent"]


def floor(name: str, round_s: float, byte_s: float) -> dict[str, object]:
    """The line of one workload."""
    work = workload(name)
    prepared, given = prepare(work), [shares(work, rank) for rank in range(PARTIES)]

    async def program(party: Party) -> None:
        await prepared.run(Replicated(party), given[party.rank])

    outcome = run_parties(program, randomness=fresh_keystreams(checked=False))
    times, started = 0, time.process_time()
    while time.process_time() - started < ENOUGH_S:
        run_parties(program, randomness=fresh_keystreams(checked=False))
        times += 1
    work_s = (time.process_time() - started) / times / CORES
    rounds_s, bytes_s = outcome.rounds * round_s, max(outcome.bytes_sent) * byte_s
    parts = {"rounds_s": rounds_s, "bytes_s": bytes_s, "work_s": work_s, "floor": rounds_s + bytes_s + work_s}
    return {"workload": name, **{key: round(value, 6) for key, value in parts.items()}, "goal": GOALS[name]}


def main(names: Sequence[str]) -> None:
    keep_large_blocks()
    round_s, byte_s = link_costs()
    about = {"machine": machine(), "commit": commit()}
    print(json.dumps({"empty_round_s": round(round_s, 7), "byte_s": round(byte_s, 12), **about}), flush=True)
    for name in names or NAMES:
        print(json.dumps(floor(name, round_s, byte_s)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
