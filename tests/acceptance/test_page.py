"""The status page, as a person sees it: in a real browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from hark.server.child import HarkProcess

from tests.acceptance.conftest import Start

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture
def served(write: Callable[..., None], start: Start) -> HarkProcess:
    """A service in which a run has completed, one has failed, and one bears a name that wants to be markup."""
    write(
        flows__py="""
            from hark import flow

            @flow
            async def good(n: int) -> int:
                return n

            @flow
            async def bad() -> None:
                raise RuntimeError("no such table: <b>orders</b>")
            """,
        hark__yaml="""
            deployments:
              good: {flow: "flows.py:good"}
              bad: {flow: "flows.py:bad"}
            automations:
              on-paid: {on: order.paid, do: [{run: good, parameters: {n: "{{ event.data.n }}"}}]}
            """,
    )
    service = start()
    with httpx.Client(base_url=service.url, timeout=30) as http:
        for name, parameters in (("good", {"n": 1}), ("bad", {})):
            asked = http.post(f"/api/deployments/{name}/run", json={"parameters": parameters})
            assert asked.is_success, asked.text
        event = {
            "type": "order.paid",
            "source": "/test",
            "subject": "<script>document.title='owned'</script>",
            "data": {"n": 7},
        }
        assert http.post("/api/events", json=event).status_code == 202
        with http.stream("GET", "/api/events/stream", headers={"Last-Event-ID": "0"}) as lines:
            ended = 0
            for line in lines.iter_lines():
                ended += '"type":"flow-run.completed"' in line or '"type":"flow-run.failed"' in line
                if ended == 3:
                    break
    return service


@pytest.mark.skipif(CHROMIUM is None and not os.environ.get("CI"), reason="no chromium on this machine")
def test_the_status_page_tells_what_happened(served: HarkProcess, tmp_path: Path) -> None:
    """Runs, their states and the open door are on the page; nothing a stranger sent becomes markup; no script fails."""
    from playwright.sync_api import sync_playwright

    assert CHROMIUM is not None, "CI installs a browser"
    faults: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on(
                "console", lambda message: faults.append(message.text) if message.type == "error" else None
            )
            answer = page.goto(served.url)
            assert answer is not None
            assert answer.status == 200
            text = page.inner_text("body")
            page.screenshot(path=str(tmp_path / "page.png"), full_page=True)
            title = page.title()
            # What failed leads on to why, and to what can be done about it.
            page.locator("tr", has_text="no such table").first.locator("a").first.click()
            run = page.inner_text("body")
            buttons = page.locator("button").all_inner_texts()
        finally:
            browser.close()
    assert "owned" not in title
    assert "no such table: <b>orders</b>" in run
    assert "Traceback" in run
    assert buttons == ["Retry"]
    assert "Hark" in title
    for word in ("good", "bad", "completed", "failed", "on-paid"):
        assert word in text.lower(), f"{word!r} is not on the page:\n{text}"
    assert "open" in text.lower(), "access is open on loopback, and the page has to say so"
    assert faults == []
