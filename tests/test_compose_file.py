"""What can be said of compose.yaml, the Dockerfile and their script without an engine; tests/containers runs them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from grid.settings import GatewaySettings, NodeSettings, describe

ROOT = Path(__file__).parent.parent
COMPOSE = (ROOT / "compose.yaml").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()

NO_SETTINGS = {"GRID_TOKEN", "GRID_JOIN"}
"""Variables of the commands themselves."""


@pytest.mark.parametrize("path", ["compose.yaml", "Dockerfile", ".dockerignore", "deploy/compose-secrets.sh"])
def test_no_secret_and_no_machine_of_ours_is_written_down(path: str) -> None:
    text = (ROOT / path).read_text()
    assert not re.search(r"grid1-[A-Za-z0-9_-]{8}|root1-[0-9a-f]{8}|BEGIN [A-Z ]*PRIVATE|password|/work/", text)


def test_secrets_come_as_files() -> None:
    given = re.findall(r"^\s+(GRID_(?:TOKEN|JOIN|ROOT|TLS_\w+)): (.+)$", COMPOSE, re.MULTILINE)
    assert given and all(value.startswith("/run/secrets/") for _, value in given)


def test_every_variable_is_a_setting() -> None:
    known = {one.variable for cls in (GatewaySettings, NodeSettings) for one in describe(cls)} | NO_SETTINGS
    set_here = re.findall(r"^\s+(GRID_\w+): ", COMPOSE, re.MULTILINE)
    assert set_here and set(set_here) <= known


def test_ports_are_published_on_loopback_unless_asked() -> None:
    ports = re.findall(r"^\s+ports:\n((?:\s+- .+\n)+)", COMPOSE, re.MULTILINE)
    lines = [line.strip(' -"') for block in ports for line in block.splitlines()]
    assert len(lines) == 2
    assert all(line.startswith(("127.0.0.1:", "${GRID_TLS_ADDRESS:-127.0.0.1}:")) for line in lines)


def test_nothing_waits_for_health() -> None:
    assert "service_healthy" not in COMPOSE


def test_the_image_is_built_from_the_project_alone_and_runs_without_rights() -> None:
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert ignored[0] == "*" and {line[1:] for line in ignored if line.startswith("!")} == {
        "grid", "pyproject.toml", "constraints.txt", "README.md", "LICENSE",
    }  # fmt: skip
    runtime = DOCKERFILE.partition(" AS runtime")[2].partition("\nFROM ")[0]
    assert "\nUSER grid\n" in runtime and "HEALTHCHECK" in runtime and "STOPSIGNAL SIGTERM" in runtime
    assert DOCKERFILE.rstrip().endswith("FROM runtime")


def test_the_script_is_sound_shell() -> None:
    script = ROOT / "deploy" / "compose-secrets.sh"
    subprocess.run(["bash", "-n", script], check=True, timeout=30)
    refused = subprocess.run(["bash", script], capture_output=True, text=True, check=False, timeout=30)
    assert refused.returncode != 0 and "usage:" in refused.stderr
