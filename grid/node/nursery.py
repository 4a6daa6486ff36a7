"""The process that workers are forked from: it has everything imported and the datasets mapped, and does nothing else.

There is one for clients' sessions and the training of federated jobs, and one for parties of committees, which has the kernels
compiled and no datasets.
A node starts it with `exec`, so it has none of the node's memory: no key ever lies in it. It runs one thread and no pool of
threads, which is what makes `fork` safe; a worker costs a few milliseconds and shares the pages of all modules. It reports
how each worker ends, and when the node is gone, it kills them all and ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import logging
import os
import resource
import select
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import NoReturn

import torch

from grid.errors import GridError
from grid.ids import ObjectId
from grid.logs import configure, tag_from_now
from grid.node.dataset_views import DatasetView
from grid.node.nursery_messages import (
    CANNOT_FORK,
    MAX_BYTES,
    OUT_OF_MEMORY,
    PARTIES,
    SESSIONS,
    TABLE,
    Ended,
    Fork,
    Forked,
    Household,
    Prepare,
    Ready,
    Share,
)
from grid.node.pace import Pace, Pulse
from grid.node.sharing import mapped_sources
from grid.node.trainer_main import TrainerProcess
from grid.node.worker import Worker, settle
from grid.node.workspace import Workspace
from grid.settings import NodeSettings, load
from grid.tensors.buffers import to_frame
from grid.tensors.exhausted import is_exhausted
from grid.tensors.uncompiled import without_compiler
from grid.transport.pipes import BlockingPipe, End, end_of, receive_files, send_files
from grid.wire.codec import decode, encode
from grid.wire.messages import Command, Commands, Message, PutObject, Ref

log = logging.getLogger(__name__)

PIPE_FD = 3
"""A worker's pipe to the node; behind it come a party's sockets, and a session's worker has no other file."""

ROOM = 1 << 20
"""Bytes of a frame beside the message that the session's limit bounds."""


class Nursery:
    """`node` is the pipe to the node."""

    def __init__(self, node: End) -> None:
        self._node = node
        self._files: list[int] = []
        self._sizes: list[int] = []
        self._sources: Mapping[str, DatasetView] = {}
        self._settings = NodeSettings()
        self._kind = SESSIONS
        self._workers: dict[int, tuple[int, int]] = {}
        """Descriptor of a worker's process -> its number and pid."""

    def run(self) -> None:
        """Until the node is gone."""
        watched = select.poll()
        watched.register(self._node, select.POLLIN)
        while True:
            for fd, _ in watched.poll():
                if fd in self._workers:
                    watched.unregister(fd)
                    self._reap(fd)
                elif not self._next(watched):
                    return

    def _next(self, watched: select.poll) -> bool:
        """Do what the node says; False at the end."""
        try:
            received = receive_files(self._node, MAX_BYTES)
        except (OSError, EOFError):
            received = None
        if received is None:
            return False
        frame, files = received
        message = decode(frame, TABLE).message
        match message:
            case Share():
                self._sizes.extend(message.sizes)
                self._files.extend(files)
                files = []
            case Prepare():
                household = decode(os.pread(files[0], message.size, 0), TABLE).message
                assert isinstance(household, Household)
                self._prepare(household)
            case Fork():
                process = self._fork(message, *files)
                if process is not None:
                    watched.register(process, select.POLLIN)
        for fd in files:
            os.close(fd)
        return True

    def _prepare(self, message: Household) -> None:
        self._settings = load(NodeSettings, toml=json.loads(message.settings))
        configure(self._settings.log.level, self._settings.log.format)
        self._sources = mapped_sources(message.sources, self._files, self._sizes)
        while self._files:
            os.close(self._files.pop())
        self._kind = message.kind
        if message.kind == PARTIES:
            from grid.node.party_main import warm_up as warm_up_parties  # loads a compiler, for nothing where sessions are

            warm_up_parties()
        else:
            warm_up(self._settings)
        if len(os.listdir("/proc/self/task")) > 1:
            raise RuntimeError(f"the nursery has more than one thread: {threading.enumerate()}")
        gc.collect()
        gc.freeze()  # what is here now stays, and is not to be copied into each worker by collections
        self._say(Ready())

    def _fork(self, message: Fork, pipe: int, page: int, *files: int) -> int | None:
        """Make a worker; a descriptor of its process, or None where the system has no room for it."""
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            log.error("no worker can be forked: %s", error.strerror)
            self._say(Ended(number=message.number, status=CANNOT_FORK))
            return None
        if not pid:
            self._become_worker(message, pipe, page, files, parent)
        process = os.pidfd_open(pid)
        self._workers[process] = (message.number, pid)
        self._say(Forked(number=message.number, pid=pid), process)
        return process

    def _become_worker(self, message: Fork, pipe: int, page: int, files: Sequence[int], parent: int) -> NoReturn:
        """The life of a worker."""
        status = 1
        tag_from_now(worker=message.number)
        try:
            pulse = Pulse(page)
            kept = [pipe, *files]
            high = [fcntl.fcntl(fd, fcntl.F_DUPFD, PIPE_FD + len(kept)) for fd in kept]  # out of the way of their places
            for place, fd in enumerate(high, PIPE_FD):
                os.dup2(fd, place)
            os.closerange(PIPE_FD + len(kept), os.sysconf("SC_OPEN_MAX"))  # mappings stay without their files
            settle(self._settings, parent, gpu=message.trains and may_use_gpu(self._settings))
            most = self._settings.session.max_message_bytes + ROOM
            if self._kind == PARTIES:
                from grid.node.party_main import run_party

                run_party(end_of(PIPE_FD), [end_of(PIPE_FD + 1 + at) for at in range(len(files))], self._settings, most)
                raise EOFError("the node is gone")
            if message.trains:
                TrainerProcess(BlockingPipe(end_of(PIPE_FD), most), pulse, self._sources, self._settings).run()
            lost = None if message.lost is None else message.lost.to_error()
            Worker(BlockingPipe(end_of(PIPE_FD), most), pulse, self._sources, self._settings, lost).run()
        except EOFError:
            status = 0
        except BaseException as error:
            status = OUT_OF_MEMORY if is_exhausted(error) else 1
            log.exception("a worker failed")
        finally:
            os._exit(status)

    def _reap(self, process: int) -> None:
        number, pid = self._workers.pop(process)
        _, status = os.waitpid(pid, 0)
        os.close(process)
        self._say(Ended(number=number, status=os.waitstatus_to_exitcode(status)))

    def _say(self, message: Message, *files: int) -> None:
        with contextlib.suppress(OSError):  # the node is gone, which the loop notices
            send_files(self._node, encode(message, table=TABLE), files)

    def end(self) -> None:
        """Kill and reap all workers."""
        for process, (_, pid) in self._workers.items():
            signal.pidfd_send_signal(process, signal.SIGKILL)
            os.waitpid(pid, 0)


def may_use_gpu(settings: NodeSettings) -> bool:
    """Whether training could find a GPU here. Asking torch would start the driver, and nothing could be forked after."""
    return settings.training_device != "cpu" and torch.version.cuda is not None and os.path.exists("/dev/nvidiactl")


def warm_up(settings: NodeSettings) -> None:
    """Do what is slow the first time, once for all workers: modules that torch loads late, and its shape rules."""
    space = Workspace(sources={}, settings=settings, pace=Pace(settings), on_failed=_report)
    space.handle(PutObject(object=ObjectId(1), tensor=to_frame(torch.ones(2, 2))))
    for number, name in enumerate(("aten.mm.default", "aten.add.Tensor", "aten.mul.Tensor"), start=2):
        command = Command(op=name, args=[Ref(1), Ref(1)], kwargs={}, outputs=(ObjectId(number),))
        space.handle(Commands(first=number, commands=(command,)))


def _report(command: int, error: GridError) -> None:
    raise error


def main() -> None:
    """`python -m grid.node.nursery FD`."""
    configure()
    without_compiler()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # every file of datasets stays open under its mapping
    nursery = Nursery(end_of(int(sys.argv[1])))
    try:
        nursery.run()
    finally:
        nursery.end()


if __name__ == "__main__":
    main()
