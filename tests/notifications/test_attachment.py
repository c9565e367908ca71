"""What goes along with a message, and how each kind of service is written to: over SMTP with STARTTLS, and HTTP."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hark.bus import Bus, LogLine
from hark.errors import NotificationFailed
from hark.notifications import Message, Notifier, Severity
from hark.vocabulary import FlowRunId

PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(range(64))


async def test_the_log_of_a_run_and_a_picture_go_along(
    notifier: Notifier, bus: Bus, define: Any, tls_mailbox: Any, receiver: Any, tmp_path: Any
) -> None:
    """In mail they are attachments; what cannot be had is left out; services that take no files get the text."""
    run = FlowRunId("0192aaaa-0000-7000-8000-000000000001")
    bus.run_logs.publish_nowait(run, LogLine(flow_run_id=run, message="no such table: orders", level=40))
    await bus.publisher.barrier()
    await bus.objects.put("plots/today.png", PICTURE)
    (tmp_path / "note.txt").write_text("from a file")
    url = f"mailtos://bob:p4ssw0rd!@127.0.0.1:{tls_mailbox.port}?from=a@example.com&to=b@example.com&mode=starttls&verify=no"
    await define("oncall", url, f"slack+http://127.0.0.1:{receiver.port}/services/T")
    gone = ("object:gone", str(tmp_path / "gone.png"), "http://127.0.0.1:9/gone.png")
    attach = (f"log:{run}", "object:plots/today.png", *gone, str(tmp_path / "note.txt"))
    message = Message("etl failed", "no rows", Severity.ERROR, attach)
    deliveries = await notifier.send("oncall", message, key="k")
    assert [d.outcome for d in deliveries] == ["sent", "sent"]
    [mail] = tls_mailbox.mails
    parts = {part.get_filename(): part for part in mail.walk() if part.get_filename()}
    files = {name: part.get_payload(decode=True) for name, part in parts.items()}
    assert {name: part.get_content_type() for name, part in parts.items()} == {
        f"run-{run}.txt": "text/plain", "today.png": "image/png", "note.txt": "text/plain",
    }  # fmt: skip
    assert b"ERROR    hark: no such table: orders" in files[f"run-{run}.txt"]
    assert files["today.png"] == PICTURE
    await define("down", "mailto://127.0.0.1:9/b@example.com?from=a@example.com")
    with pytest.raises(NotificationFailed, match=r"127\.0\.0\.1") as failed:
        await notifier.send("down", replace(message, attach=gone), key="k2")
    assert "HTTP" not in str(failed.value), "what is missing is not why"
    assert receiver.bodies[0]["text"] == "*etl failed*\nno rows"


async def test_each_kind_of_service_is_written_to_in_its_way(
    notifier: Notifier, define: Any, tls_mailbox: Any, receiver: Any
) -> None:
    """HTML for mail, a short line for chat, what is written for all for the rest; alerts' facts are there to be used."""
    url = f"mailtos://bob:p4ssw0rd!@127.0.0.1:{tls_mailbox.port}?from=a@example.com&to=b@example.com&mode=starttls&verify=no"
    await define(
        "oncall", url, f"slack+http://127.0.0.1:{receiver.port}/s", f"json://127.0.0.1:{receiver.port}/j",
        title="[{{ severity }}] {{ title }}",
        templates={
            "mailto": {"body": "<ul>{% for a in alerts %}<li>{{ a.title }}</li>{% endfor %}</ul>", "format": "html"},
            "slack": {"title": "{{ title }}", "body": "{{ firing }} open{% if ack_url %}, <{{ ack_url }}|take it>{% endif %}"},
        },
    )  # fmt: skip
    context: Any = {"alerts": [{"title": "a"}, {"title": "b"}], "firing": 2, "ack_url": "http://h/ack/x"}
    await notifier.send("oncall", Message("2 open", "- a\n- b", Severity.ERROR, (), context), key="k")
    [mail] = tls_mailbox.mails
    assert mail["Subject"] == "[error] 2 open"
    assert "<li>a</li><li>b</li>" in mail.get_body(("html",)).get_content()
    by_path = dict(receiver.requests)
    assert by_path["/s"]["text"] == "*2 open*\n2 open, <http://h/ack/x|take it>"
    linked = "- a\n- b\n\nAcknowledge: http://h/ack/x"
    assert (by_path["/j"]["title"], by_path["/j"]["message"]) == ("[error] 2 open", linked)
    # The same templates write a message that is about no alert, as a test of the channel is.
    await notifier.send("oncall", Message("hello", "there"), key="other")
    assert dict(receiver.requests[2:])["/s"]["text"] == "*hello*\n0 open"
