"""The README's tour is run, word for word."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from hark.server.child import HarkProcess

from .bus.test_cluster import free_ports

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```sh tour(?P<background> background)?\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def test_every_command_of_the_tour_works(tmp_path: Path) -> None:
    """A reader who pastes the blocks one after the other sees each of them succeed."""
    folder, home = tmp_path / "tour", tmp_path / "home"
    folder.mkdir()
    [port] = free_ports(1)
    environment = {
        **os.environ,
        "HARK_HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    blocks = list(BLOCK.finditer((ROOT / "README.md").read_text()))
    assert len(blocks) >= 5
    service: HarkProcess | None = None
    said = ""
    try:
        for block in blocks:
            code = block["code"].replace("127.0.0.1:4280", f"127.0.0.1:{port}")
            if block["background"]:
                assert code.strip() == "hark up"
                # The port is the test's, so that a reader's own server is left alone.
                service = HarkProcess(folder, home, arguments=["--port", str(port)]).start()
                continue
            ran = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", code], cwd=folder, env=environment, capture_output=True, text=True,
                stdin=subprocess.DEVNULL, timeout=240,
            )  # fmt: skip
            assert ran.returncode == 0, (
                f"{code}\n{ran.stdout}\n{ran.stderr}\n{service.log() if service else ''}"
            )
            said += ran.stdout
    finally:
        if service is not None:
            service.stop()
    assert "o-1: 9.50 charged" in said
    assert "order.paid" in said


def test_links_lead_somewhere() -> None:
    """Every relative link of the README and the docs names a file that is there."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    broken = [
        f"{page.name}: {target}"
        for page in pages
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert broken == []
