"""Making a process on Linux safe for work that somebody else has thought up: limits of the kernel, and little around it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
from collections.abc import Mapping
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38

KEPT_ENVIRONMENT = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
KEPT_PREFIXES = ("LC_", "MALLOC_", "KMP_", "NUMBA_")
"""All that such a process gets of the environment, which may hold tokens."""


def confine(parent: int, *, memory_bytes: int | None, open_files: int, niceness: int) -> None:
    """Bind this process: it ends with its parent, gets no privileges, stands back, and has limits. Raises `EOFError` where the
    parent is gone already.

    Memory is limited from what is mapped now, None for no limit. Core files would hold rows, so there are none.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.getppid() != parent:
        raise EOFError("the parent is gone")
    os.nice(niceness)
    with contextlib.suppress(OSError):  # where memory runs out, the kernel is to end this process and not its parent
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, open_files)
    if memory_bytes is not None:
        _limit(resource.RLIMIT_DATA, mapped_bytes() + memory_bytes)


def _limit(which: int, value: int) -> None:
    _, most = resource.getrlimit(which)
    value = value if most == resource.RLIM_INFINITY else min(value, most)
    resource.setrlimit(which, (value, value))


def mapped_bytes() -> int:
    """What counts against RLIMIT_DATA at present."""
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("VmData:"):
                return int(line.split()[1]) << 10
    return 0


def environment_for(environ: Mapping[str, str]) -> dict[str, str]:
    """What a Python needs of an environment, this package on its path, and single threads, since only then a fork is safe."""
    kept = {name: value for name, value in environ.items() if name in KEPT_ENVIRONMENT or name.startswith(KEPT_PREFIXES)}
    home = str(Path(__file__).parent.parent)
    paths = [home, *filter(None, kept.get("PYTHONPATH", "").split(os.pathsep))]
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**kept, **single, "PYTHONPATH": os.pathsep.join(paths)}
