"""What doctor says of a machine and of what a service keeps: each mistake is made for real."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from grid.clock import SystemClock
from grid.crypto.files import only_process
from grid.crypto.identity import LocalIdentity, RootKey, Token
from grid.doctor.findings import Finding, sound
from grid.doctor.gateway import check_gateway
from grid.doctor.keeping import check_card, check_state, in_use, read_identity
from grid.doctor.machine import check_disk, check_files, check_port, check_versions
from grid.doctor.node import check_data
from grid.settings import GatewaySettings
from grid.store.sqlite import SqliteStore

STORE = "store.sqlite"
CLOCK = SystemClock()


def one(findings: list[Finding], check: str) -> Finding:
    """The finding of one check, which says why and what to do unless all is well."""
    (found,) = (finding for finding in findings if finding.check == check)
    assert found.verdict in ("ok", "unknown") or (found.why and found.do), found
    return found


def identity(folder: Path, days: float | None = None, back_s: float = 0) -> LocalIdentity:
    """A node's identity in `folder`: enrolled for some days from `back_s` seconds ago, or signed by itself."""
    token = None
    if days is not None:
        root = RootKey.create(folder.with_suffix(".key"))
        text = root.enroll(name="alice", role="node", gateway_url="", wall=CLOCK.wall() - back_s, valid_s=days * 86400)
        token = Token.parse(text)
    return LocalIdentity.load_or_create(folder, name="alice", role="node", clock=CLOCK, token=token)


def test_versions_are_told() -> None:
    assert one(check_versions(), "version").verdict == "ok" and "protocol" in check_versions()[0].what


def test_an_old_torch_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda package: "2.1.0")
    assert one(check_versions(), "version").verdict == "wrong"


def test_few_open_files_are_found() -> None:
    code = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))\n"
        "from grid.doctor.machine import check_files\n"
        "print(check_files()[0].verdict)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "warning\n"
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert one(check_files(min(64, hard)), "open files").verdict == "ok"


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="only root mounts a small disk to fill")
def test_a_full_disk_is_found(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        assert one(check_disk(disk, little=0, scarce=0), "disk").verdict == "ok"
        (disk / "filling").write_bytes(bytes(2 << 20))
        found = one(check_disk(disk, little=0, scarce=0), "disk")
        assert found.verdict == "wrong" and "No space left" in found.what
        assert [path.name for path in disk.iterdir()] == ["filling"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_quota_that_is_reached_is_found(tmp_path: Path) -> None:
    """As a quota does, a limit on the size of files shows only when something is written."""
    code = (
        "import resource, signal, pathlib\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from grid.doctor.machine import check_disk\n"
        f"print(check_disk(pathlib.Path({str(tmp_path)!r}))[0].verdict)\n"
    )
    done = subprocess.run([sys.executable, "-B", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "wrong\n"
    assert list(tmp_path.iterdir()) == []


def test_little_room_is_a_warning(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    assert one(check_disk(tmp_path, little=0, scarce=2 * free), "disk").verdict == "warning"
    assert one(check_disk(tmp_path, little=2 * free), "disk").verdict == "wrong"
    assert one(check_disk(tmp_path / "not" / "there", little=0, scarce=0), "disk").verdict == "ok"


def test_a_port_that_is_taken_is_found() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = one(check_port("127.0.0.1", port, "--listen"), "port")
        assert found.verdict == "wrong" and str(port) in found.what and "--listen" in found.do
        assert one(check_port("127.0.0.1", port, "--listen", ours=True), "port").verdict == "ok"
    assert one(check_port("127.0.0.1", port, "--listen"), "port").verdict == "ok"
    assert one(check_port("127.0.0.1", 0, "--listen"), "port").verdict == "ok"


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid"])
def test_an_address_of_another_machine_is_found(host: str) -> None:
    assert one(check_port(host, 9999, "--listen"), "port").verdict == "wrong"


def test_a_state_folder_that_is_as_it_should_be(tmp_path: Path) -> None:
    identity(tmp_path / "state")
    SqliteStore(tmp_path / "state" / STORE).close()
    found = check_state(tmp_path / "state", STORE)
    assert [finding.verdict for finding in found] == ["ok", "ok", "ok"] and sound(found)
    assert one(check_state(tmp_path / "new", STORE), "state").verdict == "ok"
    assert not (tmp_path / "new").exists()
    assert one(check_state(None, STORE), "state").verdict == "warning"


def test_a_key_that_others_can_read_is_found(tmp_path: Path) -> None:
    state = tmp_path / "state"
    identity(state)
    (state / "identity.json").chmod(0o644)
    assert one(check_state(state, STORE), "key files").verdict == "warning"  # the folder's mode still keeps others out
    state.chmod(0o755)
    found = one(check_state(state, STORE), "key files")
    assert found.verdict == "wrong" and "identity.json" in found.what and "chmod" in found.do


def test_a_state_folder_in_use_is_told(tmp_path: Path) -> None:
    assert not in_use(tmp_path) and not in_use(None)
    with only_process(tmp_path):
        assert in_use(tmp_path)
        assert "uses it now" in one(check_state(tmp_path, STORE), "state").what
    assert not in_use(tmp_path)
    with only_process(tmp_path):  # looking did not leave it locked
        pass


def test_a_file_in_place_of_the_state_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert one(check_state(tmp_path / "file", STORE), "state").verdict == "wrong"


@pytest.mark.skipif(not Path("/proc/self/fdinfo").is_dir(), reason="needs a file system that takes no files from anybody")
@pytest.mark.parametrize("state", ["/proc/zz", "/proc/zz/deeper", "/proc"])
def test_a_state_folder_that_nobody_can_write_is_found(state: str) -> None:
    """Even root, whom no mode keeps out, and of whom `os.access` says that it may write."""
    found = check_state(Path(state), STORE)
    assert one(found, "state").verdict == "wrong" and state in one(found, "state").what


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root may write everywhere")
def test_a_state_folder_of_another_user_is_found(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o500)
    code = (
        "import pathlib\n"
        "from grid.doctor.keeping import check_state\n"
        f"print(check_state(pathlib.Path({str(state)!r}), 'store.sqlite')[0].verdict)\n"
    )
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    done = subprocess.run([*drop, sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "wrong\n"


def test_a_damaged_store_is_found(tmp_path: Path) -> None:
    SqliteStore(tmp_path / STORE).close()
    with sqlite3.connect(tmp_path / STORE) as store:
        store.executemany("INSERT INTO claim VALUES (?, ?)", [(f"{number:0200}", 1.0) for number in range(500)])
    store.close()
    data = bytearray((tmp_path / STORE).read_bytes())
    data[8192:16384] = os.urandom(8192)
    (tmp_path / STORE).write_bytes(data)
    found = one(check_state(tmp_path, STORE), "store")
    assert found.verdict == "wrong" and "copy" in found.do


def test_a_damaged_key_is_found_and_kept(tmp_path: Path) -> None:
    identity(tmp_path / "state")
    path = tmp_path / "state" / "identity.json"
    text = path.read_text()
    path.write_text(text.replace('"key": "', '"key": "zz'))
    me, found = read_identity(tmp_path / "state", "alice", "node")
    assert me is None and one(found, "key").verdict == "wrong" and "identity.json" in found[0].what
    seed = text.split('"key": "')[1][:64]
    assert seed not in found[0].what + found[0].do
    assert "zz" in path.read_text()


def test_the_keys_of_somebody_else_are_found(tmp_path: Path) -> None:
    identity(tmp_path)
    me, found = read_identity(tmp_path, "bob", "node")
    assert me is not None and one(found, "key").verdict == "wrong" and "'alice'" in found[0].what
    assert read_identity(tmp_path, None, "gateway")[1][0].verdict == "wrong"
    assert read_identity(tmp_path, None, "node")[1][0].verdict == "ok"
    assert read_identity(tmp_path / "none", "alice", "node") == (None, [])


def test_looking_at_an_identity_renews_nothing(tmp_path: Path) -> None:
    identity(tmp_path)
    before = (tmp_path / "identity.json").stat().st_mtime_ns, (tmp_path / "identity.json").read_bytes()
    me, _ = read_identity(tmp_path, "alice", "node")
    assert me is not None and check_card(me, CLOCK.wall() + 40 * 86400)[0].verdict == "ok"  # a self-signed card renews itself
    assert ((tmp_path / "identity.json").stat().st_mtime_ns, (tmp_path / "identity.json").read_bytes()) == before


def test_an_enrolment_that_ends_is_found(tmp_path: Path) -> None:
    me = identity(tmp_path / "long", days=100)
    assert one(check_card(me, CLOCK.wall()), "card").verdict == "ok"
    soon = one(check_card(me, CLOCK.wall() + 95 * 86400), "card")
    assert soon.verdict == "warning" and "5 days" in soon.what
    late = one(check_card(me, CLOCK.wall() + 101 * 86400), "card")
    assert late.verdict == "wrong" and "grid enroll" in late.do
    early = one(check_card(me, CLOCK.wall() - 3 * 86400), "card")
    assert early.verdict == "warning" and "clock" in early.why


def test_data_that_is_not_as_described_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert one(check_data(None), "data").verdict == "warning"
    assert one(check_data(tmp_path), "data").verdict == "wrong"
    assert one(check_data(tmp_path / "nowhere"), "data").verdict == "wrong"
    (tmp_path / "numbers.csv").write_text("x\n" + "1\n" * 20)
    (tmp_path / "numbers.toml").write_text('file = "numbers.csv"\n')
    found = one(check_data(tmp_path), "data")
    assert (found.verdict, found.what) == ("ok", "numbers (20 rows)")
    with monkeypatch.context() as patched:  # to look at data must not take room for it
        patched.setattr("grid.tensors.mapped.TensorFile.create", None)
        assert one(check_data(tmp_path), "data").verdict == "ok"
    (tmp_path / "numbers.csv").write_text("x\n1\nplanted\n")
    found = one(check_data(tmp_path), "data")
    assert found.verdict == "wrong" and "line 3" in found.what and "planted" not in found.what


def test_a_gateway_with_settings_that_do_not_go_is_found(tmp_path: Path) -> None:
    def refuse() -> None:
        from grid.errors import InvalidRequest

        raise InvalidRequest("say --root KEY")

    settings = GatewaySettings(port=0, state=tmp_path / "state", max_connections=16)
    found = check_gateway(settings, STORE, refuse, CLOCK)
    assert one(found, "settings").verdict == "wrong"
    assert one(found, "tls").verdict == "warning"
    assert sound(check_gateway(settings, STORE, lambda: None, CLOCK))
