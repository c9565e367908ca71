"""Who changed what stands in the log: with the key's name, without what was sent, and without those who were refused."""

from __future__ import annotations

from typing import Any

import anyio
import httpx
import pytest
from hark.server.audit import AUDIT_TYPES, audit_event, changes_something

from tests.server.conftest import Start


@pytest.mark.parametrize(
    ("method", "path", "is_kept"),
    [
        ("PUT", "/api/variables/region", True), ("DELETE", "/api/keys/ci", True), ("POST", "/api/flow-runs/1/cancel", True),
        ("POST", "/api/config/apply", True), ("GET", "/api/variables", False), ("POST", "/api/events", False),
        ("POST", "/api/config/plan", False), ("POST", "/api/automations/backtest", False), ("POST", "/hooks/github", False),
        ("HEAD", "/api/events", False), ("POST", "/runs/1/cancel", True), ("POST", "/firings/1/redrive", True),
        ("GET", "/runs/1", False), ("POST", "/ack/token", False),
    ],
)  # fmt: skip
def test_calls_that_change_something_are_kept(method: str, path: str, is_kept: bool) -> None:
    """Asking changes nothing; events and webhooks are in the log themselves."""
    assert changes_something(method, path) is is_kept


def test_what_is_kept_is_bounded_and_own() -> None:
    """A path is no place to put a megabyte; every type that is listed is one of Hark's."""
    event = audit_event("ci", "PUT /api/variables/" + "x" * 5000)
    assert len(event.to_json()) < 1500
    assert len(set(AUDIT_TYPES)) == len(AUDIT_TYPES)


async def until(http: httpx.AsyncClient, wanted: set[tuple[str | None, str]], **params: Any) -> list[Any]:
    """Return the audit once it holds these (by, what)."""
    with anyio.fail_after(60):
        while True:
            answer = await http.get("/api/audit", params=params)
            items: list[Any] = answer.json()["items"]
            if wanted <= {(i["by"], i["what"]) for i in items}:
                return items
            await anyio.sleep(0.02)


async def test_the_audit_names_the_key_of_each_change(start: Start) -> None:
    """Open access is anyone's; the configuration is named; refused calls are not there; nothing sent is shown."""
    async with start() as (_, http):
        assert (await http.put("/api/secrets/token", json={"value": "hush-hush"})).status_code == 204
        made = await http.post("/api/keys", json={"name": "ci"})
        key = {"authorization": f"Bearer {made.json()['token']}"}
        assert (await http.put("/api/variables/region", json={"value": "us"})).status_code == 401
        assert (await http.put("/api/variables/region", json={"value": "us"}, headers=key)).status_code == 204
        assert (await http.delete("/api/variables/none", headers=key)).status_code == 404
        http.headers.update(key)
        wanted: set[tuple[str | None, str]] = {
            ("anyone", "PUT /api/secrets/token"), ("anyone", "POST /api/keys"), ("ci", "PUT /api/variables/region"),
            (None, "variable.updated"),
        }  # fmt: skip
        items = await until(http, wanted)
        said = [(i["by"], i["what"]) for i in items]
        assert said.count(("ci", "PUT /api/variables/region")) == 1
        assert not any("none" in str(what) for _, what in said)
        assert any(by == "configuration" and "to create" in what for by, what in said)
        assert "hush" not in str(items)
        assert [i["seq"] for i in items] == sorted((i["seq"] for i in items), reverse=True)
        own = await until(http, {("ci", "PUT /api/variables/region")}, by="ci", since="1h")
        assert {i["by"] for i in own} == {"ci"}
        assert own[0]["from"] == "127.0.0.1"
