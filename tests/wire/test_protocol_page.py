"""docs/reference/protocol.md says what the code does."""

from __future__ import annotations

from pathlib import Path

from grid.wire.docs import main, protocol_page
from grid.wire.messages import MESSAGES

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "protocol.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == protocol_page(), "run `make docs`"


def test_every_message_is_on_the_page() -> None:
    for tag, cls in MESSAGES.items():
        assert f"### `{tag}` ({cls.__name__})" in protocol_page()


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    main([str(tmp_path / "page.md")])
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == protocol_page()
