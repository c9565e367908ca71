"""Where the demo's messages arrive: a mail server and a Slack-shaped HTTP receiver, both real, both on loopback."""

from __future__ import annotations

import email
import email.policy
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ...errors import DefinitionError


@dataclass
class Inbox:
    """What has arrived, in order of arrival."""

    url: str
    messages: list[str] = field(default_factory=list)


@contextmanager
def slack_receiver() -> Iterator[Inbox]:
    """Take Slack's incoming-webhook posts on a free port and answer ``ok``, as Slack does."""
    inbox = Inbox("")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            inbox.messages.append(_slack_text(json.loads(raw)))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: the story does the talking."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        inbox.url = f"slack+http://127.0.0.1:{server.server_port}/services/T000/B000/XXXXXXXX"
        thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="slack-receiver"
        )
        thread.start()
        try:
            yield inbox
        finally:
            server.shutdown()
            thread.join()


def _slack_text(payload: dict[str, object]) -> str:
    return " / ".join(str(payload.get("text") or "").replace("*", "").splitlines())


@contextmanager
def mail_receiver() -> Iterator[Inbox]:
    """Take mail by SMTP on a free port."""
    try:
        from aiosmtpd.controller import Controller
        from aiosmtpd.smtp import SMTP, Envelope, Session
    except ImportError as exc:
        raise DefinitionError(
            "the demo delivers mail to a real SMTP server, which is not installed",
            hint="pip install 'hark[demo]'",
        ) from exc
    inbox = Inbox("")

    class Handler:
        async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
            message = email.message_from_bytes(envelope.original_content or b"", policy=email.policy.default)
            inbox.messages.append(str(message["Subject"]))
            return "250 OK"

    # Port 0 would do for listening, but the library then looks for itself on port 0.
    controller = Controller(Handler(), hostname="127.0.0.1", port=_free_port())
    controller.start()
    inbox.url = f"mailto://127.0.0.1:{controller.port}/?from=hark@example.com&to=oncall@example.com&name=Hark"
    try:
        yield inbox
    finally:
        controller.stop()


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
