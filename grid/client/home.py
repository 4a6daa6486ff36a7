"""Who this user is to a grid: keys kept in a folder, a token just received, or keys for this session alone.

Which of these counts is decided from what the gateway says of its grid, before anything is sent to it:

* a token: keys of our own, signed with the token's; kept in `<home>/<grid id>`, so the token is needed once;
* no token, and the grid has a root: the keys kept for it, or `AuthenticationFailed`;
* no token, and the gateway runs with `--dev`: fresh keys, and trust on first use; on this machine only, unless asked for.

`home` is `GRID_HOME`, or `~/.config/grid`. Files have mode 0600.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
from pathlib import Path
from urllib.parse import urlsplit

from grid.clock import Clock
from grid.crypto.identity import LocalIdentity, Token, Trust, id_of, parse_root
from grid.crypto.keys import is_id
from grid.errors import AuthenticationFailed, InvalidRequest
from grid.transport import websocket
from grid.wire.messages import Greeting

CLIENT = "client"
IDENTITY_FILE = "identity.json"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What `connect` was given. `remote_dev` allows a grid with `--dev` on another machine."""

    url: str
    root: str | None = None
    token: str | None = None
    home: Path | None = None
    remote_dev: bool = False

    def choose(self, greeting: Greeting, clock: Clock) -> tuple[LocalIdentity, Trust]:
        """Who we are to this grid, and whom we trust there. Raises `AuthenticationFailed` where that is nobody."""
        folder = home_folder(self.home)
        if self.token is not None:
            return _enrolled(Token.parse(self.token), self.root, folder, clock)
        kept = _kept(folder, greeting, clock, self.root)
        if kept is not None:
            return kept
        if self.root is not None or not greeting.dev:
            raise AuthenticationFailed(
                "this grid has a root, and no keys for it are kept here: connect with token=..., which `grid enroll` prints"
            )
        if not self.remote_dev and not is_loopback(self.url):
            raise AuthenticationFailed(
                "the gateway runs with --dev, where nobody proves who they are, on another machine; connect with remote_dev=True"
                " if that is what you want"
            )
        pins = None if is_loopback(self.url) else folder / "dev"
        return _fresh(clock), Trust.dev(pins)


def home_folder(home: Path | None = None) -> Path:
    """Where this user's keys are kept."""
    return home or Path(os.environ.get("GRID_HOME") or Path.home() / ".config" / "grid")


def gateway_url(url: str) -> str:
    """`http://host:8080` or `host:8080` -> `ws://host:8080`, as people copy it from a browser."""
    place = urlsplit(url if "://" in url else f"ws://{url}")
    scheme = {"http": "ws", "https": "wss"}.get(place.scheme, place.scheme)
    if scheme not in ("ws", "wss") or not place.hostname:
        raise InvalidRequest("a grid's URL looks like ws://HOST:PORT or wss://HOST:PORT")
    return f"{scheme}://{place.netloc}{place.path}"


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine by its loopback address."""
    return websocket.is_loopback(urlsplit(url).hostname or "")


def _fresh(clock: Clock) -> LocalIdentity:
    return LocalIdentity.create(name=f"client-{secrets.token_hex(4)}", role=CLIENT, clock=clock)


def _enrolled(token: Token, root: str | None, folder: Path, clock: Clock) -> tuple[LocalIdentity, Trust]:
    if root is not None and parse_root(root) != token.root:
        raise AuthenticationFailed("the token is of another grid than root=...; ask for the one that belongs to this grid")
    mine = folder / id_of(token.root)
    me = LocalIdentity.load_or_create(mine, role=CLIENT, clock=clock, token=token)
    return me, Trust.rooted(token.root, mine)


def _kept(folder: Path, greeting: Greeting, clock: Clock, root: str | None) -> tuple[LocalIdentity, Trust] | None:
    """The keys kept for the grid that was asked for, or that the gateway names. It may lie about that: `Trust` finds out."""
    if root is None and (greeting.dev or not is_id(greeting.grid)):
        return None
    mine = folder / (greeting.grid if root is None else id_of(parse_root(root)))
    if not (mine / IDENTITY_FILE).exists():
        return None
    me = LocalIdentity.load_or_create(mine, role=CLIENT, clock=clock)
    if me.enrolment is None:
        raise AuthenticationFailed(f"the keys in {mine} are not enrolled; connect with token=...")
    return me, Trust.rooted(me.enrolment.root, mine)
