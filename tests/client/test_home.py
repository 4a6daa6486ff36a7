"""Who a client is to a grid: decided from the gateway's greeting, before anything is sent."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from grid.client.home import Credentials, gateway_url, home_folder, is_loopback
from grid.clock import SystemClock
from grid.crypto.identity import LocalIdentity, RootKey, id_of
from grid.errors import AuthenticationFailed, InvalidRequest
from grid.wire.messages import Greeting

CLOCK = SystemClock()
URL = "ws://127.0.0.1:8080"


def greeting(*, dev: bool, grid: str = "") -> Greeting:
    key = LocalIdentity.create(name="gateway", role="gateway", clock=CLOCK).public_key
    return Greeting(grid=grid or id_of(key), dev=dev, gateway_key=key, nonce=bytes(32), wall=CLOCK.wall())


@pytest.fixture
def root(tmp_path: Path) -> RootKey:
    return RootKey.create(tmp_path / "root.json")


def token_of(root: RootKey, name: str = "dora") -> str:
    return root.enroll(name=name, role="client", gateway_url=URL, wall=CLOCK.wall())


def test_dev_on_this_machine_gives_fresh_keys_that_are_kept_nowhere(tmp_path: Path) -> None:
    credentials = Credentials(url=URL, home=tmp_path / "home")
    first, trust = credentials.choose(greeting(dev=True), CLOCK)
    second, _ = credentials.choose(greeting(dev=True), CLOCK)
    assert trust.is_dev and first.id != second.id and first.role == "client" and not (tmp_path / "home").exists()


def test_dev_elsewhere_has_to_be_asked_for(tmp_path: Path) -> None:
    far = Credentials(url="ws://grid.example:8080", home=tmp_path)
    with pytest.raises(AuthenticationFailed, match="remote_dev"):
        far.choose(greeting(dev=True), CLOCK)
    _, trust = Credentials(url=far.url, home=tmp_path, remote_dev=True).choose(greeting(dev=True), CLOCK)
    assert trust.is_dev


def test_a_grid_with_a_root_needs_a_token_once(tmp_path: Path, root: RootKey) -> None:
    home = tmp_path / "home"
    rooted = greeting(dev=False, grid=root.grid)
    for without in (Credentials(url=URL, home=home), Credentials(url=URL, home=home, root=root.text)):
        with pytest.raises(AuthenticationFailed, match="token"):
            without.choose(rooted, CLOCK)
    me, trust = Credentials(url=URL, home=home, token=token_of(root)).choose(rooted, CLOCK)
    assert me.name == "dora" and trust.grid == root.grid and not trust.is_dev
    file = home / root.grid / "identity.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for later in (Credentials(url=URL, home=home), Credentials(url=URL, home=home, root=root.text)):
        again, same = later.choose(rooted, CLOCK)
        assert again.id == me.id and same.grid == root.grid


def test_kept_keys_are_for_their_grid_alone(tmp_path: Path, root: RootKey) -> None:
    home = tmp_path / "home"
    Credentials(url=URL, home=home, token=token_of(root)).choose(greeting(dev=False, grid=root.grid), CLOCK)
    other = RootKey.create(tmp_path / "other.json")
    with pytest.raises(AuthenticationFailed, match="token"):
        Credentials(url=URL, home=home).choose(greeting(dev=False, grid=other.grid), CLOCK)
    _, trust = Credentials(url=URL, home=home).choose(greeting(dev=True), CLOCK)
    assert trust.is_dev
    with pytest.raises(AuthenticationFailed, match="another grid"):
        Credentials(url=URL, home=home, token=token_of(root), root=other.text).choose(greeting(dev=False), CLOCK)


@pytest.mark.parametrize("grid", ["../../etc", "/", "", "a" * 26 + "/x", "x"])
def test_a_gateway_cannot_choose_the_file_that_is_read(tmp_path: Path, grid: str) -> None:
    lying = Greeting(grid=grid, dev=False, gateway_key=bytes(32), nonce=bytes(32), wall=0.0)
    with pytest.raises(AuthenticationFailed, match="token"):
        Credentials(url=URL, home=tmp_path).choose(lying, CLOCK)


def test_where_keys_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRID_HOME", str(tmp_path / "here"))
    assert home_folder() == tmp_path / "here" and home_folder(tmp_path) == tmp_path
    monkeypatch.delenv("GRID_HOME")
    assert home_folder() == Path.home() / ".config" / "grid"


def test_urls_as_people_copy_them() -> None:
    assert gateway_url("http://127.0.0.1:8080") == gateway_url("127.0.0.1:8080") == gateway_url(URL) == URL
    assert gateway_url("https://grid.example") == "wss://grid.example"
    for wrong in ("ftp://x", "ws://", "nonsense://", ""):
        with pytest.raises(InvalidRequest, match="ws://HOST:PORT"):
            gateway_url(wrong)
    assert is_loopback(URL) and is_loopback("ws://[::1]:1") and is_loopback("ws://localhost:1")
    assert not is_loopback("ws://10.0.0.1:1") and not is_loopback("ws://localhost.example:1")
