"""Webhooks over real HTTP: every preset signed as its sender signs, answers that wait for a run, requests kept and sent again."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread
from hark.cli.main import app
from hark.config import load_settings
from hark.server.client import Hark
from hark.server.roles import Role
from hark.server.service import Service
from hark.server.signing import signed_headers
from typer.testing import CliRunner, Result

from tests.server.conftest import Start

SERVER = frozenset({Role.SERVER})
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OLD = "whsec_b2xkLW9sZC1vbGQtb2xkLW9sZA=="

CONFIG = """
webhooks:
  github: {verify: {preset: github, secret: ["{{ secrets.new }}", "{{ secrets.old }}"]}}
  gitlab: {verify: {preset: gitlab, secret: ["{{ secrets.new }}", "{{ secrets.old }}"]}}
  stripe: {verify: {preset: stripe, secret: ["{{ secrets.new }}", "{{ secrets.old }}"]}}
  slack: {verify: {preset: slack, secret: ["{{ secrets.new }}", "{{ secrets.old }}"]}}
  shopify: {verify: {preset: shopify, secret: ["{{ secrets.new }}", "{{ secrets.old }}"]}}
  standard: {verify: {preset: standard-webhooks, secret: ["{{ secrets.new }}", "{{ secrets.old }}"]}}
  ce: {verify: {preset: cloudevents, secret: ["{{ secrets.new }}", "{{ secrets.old }}"], allowed_origins: [events.example]}}
  hmac:
    verify:
      {preset: hmac, secret: ["{{ secrets.new }}", "{{ secrets.old }}"], header: X-Sig, prefix: "v1=", algorithm: sha512,
       encoding: base64, signed: "{timestamp}.{body}", timestamp_header: X-Time}
    event: {type: "hmac.{{ body.kind }}"}
  bearer: {verify: {preset: bearer, secret: ["{{ secrets.new }}", "{{ secrets.old }}"]}, event: {type: bearer.came}}
  basic: {verify: {preset: basic, user: ann, secret: ["{{ secrets.new }}", "{{ secrets.old }}"]}, event: {type: basic.came}}
  open: {verify: none, event: {type: open.came}}
"""

CE = {"specversion": "1.0", "type": "acme.paid", "source": "/acme", "id": "1", "data": {"n": 1}}
CASES: dict[str, tuple[Any, str, str, str | None, str]] = {
    # webhook: body, what its sender calls it, type of the event, its subject, content type
    "github": ({"repository": {"full_name": "o/r"}}, "workflow_run", "github.workflow-run", "repo/o/r", ""),
    "gitlab": (
        {"object_kind": "merge_request", "project": {"path_with_namespace": "g/p"}},
        "Merge Request Hook", "gitlab.merge-request", "project/g/p", "",
    ),
    "stripe": (
        {"id": "evt_1", "type": "payment_intent.succeeded", "data": {"object": {"object": "payment_intent", "id": "pi_1"}}},
        "", "stripe.payment-intent.succeeded", "payment_intent/pi_1", "",
    ),
    "slack": (
        {"type": "event_callback", "event_id": "Ev1", "event": {"type": "reaction_added", "channel": "C1"}},
        "", "slack.reaction-added", "channel/C1", "",
    ),
    "shopify": ({"id": 1}, "orders/create", "shopify.orders.create", None, ""),
    "standard": ({"type": "invoice.paid"}, "", "standard.invoice.paid", None, ""),
    "ce": (CE, "", "acme.paid", None, "application/cloudevents+json"),
    "hmac": ({"kind": "x"}, "", "hmac.x", None, ""),
    "bearer": ({}, "", "bearer.came", None, ""),
    "basic": ({}, "", "basic.came", None, ""),
    "open": ({}, "", "open.came", None, ""),
}  # fmt: skip


async def with_secrets(hark: Hark) -> None:
    await hark.set_secret("new", SECRET)
    await hark.set_secret("old", OLD)


async def last_event(service: Service, type_: str) -> Any:
    found = await service.bus.log.last(f"hark.ev.{type_}")
    assert found is not None, type_
    return found.event


async def test_every_preset_takes_its_senders_requests_by_either_secret(start: Start) -> None:
    """Signed with the new secret and with the old one: 202 and the event; with another: 401; changed on the way: 401."""
    async with start(roles=SERVER, config=CONFIG) as (service, http), Hark(service.url, "") as hark:
        await with_secrets(hark)
        for name, (value, word, type_, subject, content_type) in CASES.items():
            hook: Any = await hark.webhook(name)
            assert SECRET not in json.dumps(hook)
            headers = {"content-type": content_type or "application/json"}
            seen = set()
            for n, secret in enumerate((SECRET, OLD)):
                # A delivery of its own each time, where the body says which it is.
                body = json.dumps(value).replace("evt_1", f"evt_{n}").replace("Ev1", f"Ev{n}")
                body = body.replace('"id": "1"', f'"id": "{n}"')
                sign = partial(signed_headers, hook["verify"], body=body.encode(), event=word)
                answer = await http.post(
                    f"/hooks/{name}", content=body, headers={**headers, **sign(secret=secret)}
                )
                assert answer.status_code == 202, (name, answer.text)
                event = await last_event(service, type_)
                assert (event.subject, event.id) == (subject, answer.json()["id"]), name
                seen.add(event.id)
            assert len(seen) == 2
            if name == "open":
                continue
            wrong = await http.post(
                f"/hooks/{name}", content=body, headers={**headers, **sign(secret="whsec_d3Jvbmc=")}
            )
            assert wrong.status_code == 401, (name, wrong.text)
            assert (await http.post(f"/hooks/{name}", content=body, headers=headers)).status_code == 401
            if name not in ("gitlab", "ce", "bearer", "basic") or "webhook-signature" in sign(secret=SECRET):
                changed = await http.post(
                    f"/hooks/{name}", content=body + " ", headers={**headers, **sign(secret=SECRET)}
                )
                assert changed.status_code == 401, name


async def test_the_handshakes_of_cloud_events_and_slack_are_answered(start: Start) -> None:
    """OPTIONS lets a known origin in and no other; Slack's challenge is echoed if signed, and is no event."""
    async with start(roles=SERVER, config=CONFIG) as (service, http), Hark(service.url, "") as hark:
        await with_secrets(hark)
        ask = {"WebHook-Request-Origin": "events.example", "WebHook-Request-Rate": "120"}
        answer = await http.options("/hooks/ce", headers=ask)
        assert answer.status_code == 200
        assert answer.headers["webhook-allowed-origin"] == "events.example"
        assert answer.headers["webhook-allowed-rate"] == "30000"
        other = await http.options("/hooks/ce", headers={"WebHook-Request-Origin": "evil.example"})
        assert other.status_code == 401
        assert "webhook-allowed-origin" not in other.headers
        assert (await http.options("/hooks/github", headers=ask)).status_code == 405
        body = json.dumps(
            {"type": "url_verification", "challenge": "3eZbrw1aBm2rZgRNFdxV2595E9CY3gmdALWMmHkvFXO7tYXAYM8P"}
        )
        hook: Any = await hark.webhook("slack")
        headers = signed_headers(hook["verify"], body=body.encode(), secret=SECRET)
        headers["content-type"] = "application/json"
        answer = await http.post("/hooks/slack", content=body, headers=headers)
        assert (answer.status_code, answer.json()) == (200, {"challenge": json.loads(body)["challenge"]})
        assert (await http.post("/hooks/slack", content=body)).status_code == 401
        assert await service.bus.log.last("hark.ev.slack.>") is None


WAITING = """
deployments:
  double: {flow: flows.py:etl}
  broken: {flow: flows.py:broken}
webhooks:
  ask: {verify: none, event: {type: "ask.{{ body.what }}"}, wait_for_run: 50s}
automations:
  double: {on: ask.double, do: [{run: double, parameters: {n: "{{ event.data.n }}"}}]}
  broken: {on: ask.broken, do: [{run: broken}]}
  nobody: {on: ask.nobody, do: [{notify: "json://127.0.0.1:9/", retries: 0}, {run: "{{ event.data.what }}"}]}
"""


async def test_an_answer_waits_for_the_real_run_it_led_to(start: Start) -> None:
    """Webhook, rule, deployment, worker, and back over HTTP: 200 with the result, 500 with why, also if it was refused."""
    async with start(config=WAITING) as (_, http):
        answer = await http.post("/hooks/ask", json={"what": "double", "n": 21})
        assert answer.status_code == 200, answer.text
        assert (answer.json()["result"], answer.json()["state"]["type"]) == (42, "COMPLETED")
        run = (
            await http.get(f"/api/flow-runs/{answer.json()['run']['id']}/wait", params={"timeout_s": 5})
        ).json()
        assert run["deployment"] == "double"
        failed = await http.post("/hooks/ask", json={"what": "broken"})
        assert (failed.status_code, failed.json()["state"]["type"]) == (500, "FAILED")
        assert "no such table" in failed.json()["state"]["message"]
        refused = await http.post("/hooks/ask", json={"what": "nobody"})
        assert (refused.status_code, refused.json()["run"]) == (500, None)
        assert "no deployment" in refused.json()["error"]


@pytest.fixture
def command(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run a `hark …` against the service on this home, in a thread of its own."""
    runner = CliRunner()

    async def run(service: Service, *words: str, stdin: str | None = None) -> Result:
        monkeypatch.setenv("HARK_HOME", str(home))
        monkeypatch.setenv("HARK_API_URL", service.url)
        load_settings.cache_clear()
        return await to_thread.run_sync(partial(runner.invoke, app, list(words), input=stdin))

    return run


async def test_hark_webhooks_send_signs_for_every_preset(
    start: Start, command: Callable[..., Any], tmp_path: Path
) -> None:
    """The command delivers what the sender would: accepted with the right secret, exit 1 with a wrong one."""
    secret, wrong = tmp_path / "secret", tmp_path / "wrong"
    secret.write_text(SECRET + "\n")
    wrong.write_text("whsec_d3Jvbmc=")
    async with start(roles=SERVER, config=CONFIG) as (service, _), Hark(service.url, "") as hark:
        await with_secrets(hark)
        for name, (value, word, type_, _subject, _content_type) in CASES.items():
            words = ["webhooks", "send", name, json.dumps(value), "--event", word, "--json"]
            sent = await command(service, *words, "--secret-file", str(secret))
            assert sent.exit_code == 0, (name, sent.output)
            assert json.loads(sent.stdout)["status"] == 202
            assert (await last_event(service, type_)).id == json.loads(sent.stdout)["answer"]["id"]
            if name == "github":
                piped = await command(service, *words, stdin=SECRET + "\n")
                assert (piped.exit_code, piped.stderr) == (0, "")
                both = await command(service, "webhooks", "send", name, "-", stdin="{}")
                assert (both.exit_code, "--secret-file" in both.output) == (2, True)
            if name == "slack":
                given = [
                    "-H",
                    "Content-Type: application/x-www-form-urlencoded",
                    "--secret-file",
                    str(secret),
                ]
                form = await command(service, "webhooks", "send", name, "command=%2Fgo&trigger_id=t1", *given)
                assert (form.exit_code, form.stdout[:3]) == (0, "202")
                nowhere = await command(service, *words, "--secret-file", str(tmp_path / "nowhere"))
                assert (nowhere.exit_code, "does not exist" in nowhere.output) == (2, True)
            if name == "standard":
                wrong.write_text("no base64!")
                unsigned = await command(service, *words, "--secret-file", str(wrong))
                assert (unsigned.exit_code, "whsec_" in unsigned.output) == (2, True)
                wrong.write_text("whsec_d3Jvbmc=")
            if name != "open":
                refused = await command(service, *words, "--secret-file", str(wrong))
                assert (refused.exit_code, json.loads(refused.stdout)["status"]) == (1, 401), name


async def test_requests_are_listed_shown_and_delivered_again(
    start: Start, command: Callable[..., Any]
) -> None:
    """By the command line: what came in, without its credentials, and once more through the webhook as it is."""
    async with start(roles=SERVER, config=CONFIG) as (service, http), Hark(service.url, "") as hark:
        await with_secrets(hark)
        bearer = {"authorization": f"Bearer {SECRET}"}
        assert (
            await http.post("/hooks/bearer?token=t&x=1&token=u&y=a&y=b", json={"n": 1}, headers=bearer)
        ).status_code == 202
        assert (await http.post("/hooks/bearer", json={"n": 2})).status_code == 401
        await service.bus.publisher.barrier()
        listed = json.loads((await command(service, "webhooks", "requests", "bearer", "--json")).stdout)
        assert [(r["status"], r["reason"]) for r in listed] == [(401, "credentials-missing"), (202, None)]
        accepted = listed[1]["id"]
        shown = await command(service, "webhooks", "request", accepted, "--json")
        assert SECRET not in shown.stdout
        item = json.loads(shown.stdout)
        assert (item["headers"]["authorization"], item["query"]) == (
            "***", {"token": ["***", "***"], "x": "1", "y": ["a", "b"]},
        )  # fmt: skip
        assert json.loads(item["body"]) == {"n": 1}
        again = await command(service, "webhooks", "redeliver", accepted, "--json")
        assert again.exit_code == 0, again.output
        event = await last_event(service, "bearer.came")
        assert event.id == json.loads(again.stdout)["answer"]["id"]
        assert (event.replayof, event.data) == (listed[1]["event_ids"][0], {"n": 1})
        refused = await command(service, "webhooks", "redeliver", listed[0]["id"])
        assert (refused.exit_code, "not kept" in refused.output) == (1, True)
        assert (await command(service, "webhooks", "redeliver", "12345")).exit_code == 2
        assert (await command(service, "webhooks", "requests", "nope")).exit_code == 2
        with anyio.fail_after(60):
            assert [r["id"] for r in await hark.webhook_requests("bearer", refused=False)] == [accepted]


async def test_curl_sends_a_batch(start: Start, tmp_path: Path) -> None:
    """A CloudEvents batch from another implementation's hands: each event is stored under its own id."""
    batch = tmp_path / "batch.json"
    batch.write_text(json.dumps([{**CE, "id": str(n)} for n in range(3)]))
    async with start(roles=SERVER, config=CONFIG) as (service, _), Hark(service.url, "") as hark:
        await with_secrets(hark)
        words = [
            "curl", "-sS", "-X", "POST", f"{service.url}/hooks/ce", "--data-binary", f"@{batch}",
            "-H", "Content-Type: application/cloudevents-batch+json", "-H", f"Authorization: Bearer {SECRET}",
        ]  # fmt: skip
        answered = await anyio.run_process(words)
        assert json.loads(answered.stdout) == {"ids": ["0", "1", "2"]}
        assert (await last_event(service, "acme.paid")).id == "2"
