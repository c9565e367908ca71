"""The demo's story: what is sent, what must follow, and what was seen.

A real ``hark up`` is started as a child with a temporary home. Deliveries go in over HTTP; everything that follows is
read back from the event stream, the mail server and the Slack-shaped receiver. The exit code is 0 only if every
expected effect was seen exactly once.
"""

from __future__ import annotations

import secrets
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import orjson

from ...errors import UnavailableError
from ...server.child import HarkProcess
from .payloads import Delivery, failed_workflow_run, push
from .receivers import Inbox, mail_receiver, slack_receiver

STEP_DEADLINE_S = 15.0
QUIET_S = 1.0
"""How long to keep listening at the end for an effect that comes a second time."""

_COLOURS = {
    "send": "36",
    "event": "2",
    "rule": "35",
    "action": "33",
    "run": "32",
    "message": "1",
    "fault": "31",
}


class NotSeen(Exception):
    """Something that must follow did not, within its deadline."""


@dataclass
class Narrator:
    """Prints one line for each thing that happens, with the seconds since the start."""

    began: float = field(default_factory=time.monotonic)
    colour: bool = field(default_factory=sys.stdout.isatty)

    def chapter(self, title: str) -> None:
        print(f"\n{title}", flush=True)

    def say(self, kind: str, text: str, *, took_ms: float | None = None) -> None:
        label = f"{kind:<8}"
        if self.colour:
            label = f"\033[{_COLOURS.get(kind, '0')}m{label}\033[0m"
        after = f"   ({took_ms:.0f} ms)" if took_ms is not None else ""
        # One write: the witness speaks from a thread of its own.
        sys.stdout.write(f"{time.monotonic() - self.began:7.3f} s  {label} {text}{after}\n")
        sys.stdout.flush()


class Witness:
    """Reads the event stream in a thread of its own, says what happens, and keeps what it has seen."""

    def __init__(self, api: str, narrator: Narrator) -> None:
        self._api, self._narrator = api, narrator
        self._changed = threading.Condition()
        self._sent_at: dict[str, float] = {}
        self._stopping = False
        self.seen: list[dict[str, object]] = []
        self.error: str | None = None

    def sent(self, event_id: str) -> None:
        """Remember when a delivery went out, to tell how long things took."""
        self._sent_at[event_id] = time.monotonic()

    def stop(self) -> None:
        self._stopping = True

    def run(self, ready: threading.Event) -> None:
        try:
            timeout = httpx.Timeout(5.0, read=None)
            with (
                httpx.Client(base_url=self._api, timeout=timeout) as client,
                client.stream("GET", "/api/events/stream") as lines,
            ):
                lines.raise_for_status()
                ready.set()
                for line in lines.iter_lines():
                    if self._stopping:
                        return
                    if line.startswith("data:"):
                        self._take(orjson.loads(line[5:])["event"])
        except httpx.HTTPError as exc:
            if not self._stopping:
                self.error = f"the event stream broke: {exc}"
        finally:
            ready.set()
            with self._changed:
                self._changed.notify_all()

    def _take(self, event: dict[str, object]) -> None:
        if told := _telling(event):
            self._narrator.say(*told)
        with self._changed:
            self.seen.append(event)
            self._changed.notify_all()

    def wait(self, what: str, enough: Callable[[], bool]) -> None:
        """Wait until ``enough()``; raises ``NotSeen`` naming ``what`` after the deadline."""
        deadline = time.monotonic() + STEP_DEADLINE_S
        with self._changed:
            while not enough():
                left = deadline - time.monotonic()
                if self.error or left <= 0:
                    raise NotSeen(self.error or f"{what}: not seen within {STEP_DEADLINE_S:.0f} s")
                # Mail and Slack arrive outside this condition, so look again often.
                self._changed.wait(min(left, 0.05))

    def count(self, type_: str, **expected: str) -> int:
        """Return how many events of a type were seen whose dotted ``data`` paths (``__`` for a dot) have these values."""
        return sum(
            1 for event in list(self.seen)
            if event["type"] == type_ and all(_at(event.get("data"), path) == value for path, value in expected.items())
        )  # fmt: skip


def _at(data: object, path: str) -> object:
    for word in path.split("__"):
        data = data.get(word) if isinstance(data, dict) else None
    return data


def _for_key(data: object) -> str:
    key = _at(data, "key")
    return f"for {key} " if key else ""


def _telling(event: dict[str, object]) -> tuple[str, str] | None:
    type_, data = str(event["type"]), event.get("data")
    if type_.startswith("github."):
        return "event", f"{type_} about {event.get('subject')}"
    if type_ == "webhook.rejected":
        return "fault", f"{type_}: {_at(data, 'reason')}"
    if type_ == "automation.triggered":
        return (
            "rule",
            f"{_at(data, 'automation__name')} fired {_for_key(data)}(count {_at(data, 'count')})",
        )
    if type_ == "action.executed":
        return "action", f"{_at(data, 'kind')} done for {_at(data, 'automation')}"
    if type_ in ("action.failed", "action.dead-lettered", "notification.failed"):
        return "fault", f"{type_}: {_at(data, 'error')}"
    if type_.startswith("flow-run."):
        message = _at(data, "state__message")
        return "run", f"{_at(data, 'run__name')} of {_at(data, 'flow__name')} is {type_[9:]}" + (
            f": {str(message).splitlines()[-1][:90]}" if message and type_ == "flow-run.failed" else ""
        )
    if type_ == "notification.sent":
        return "message", f"sent to {_at(data, 'channel')} by {_at(data, 'kind')}"
    return None


class Story:
    """Tells the story and counts what was seen."""

    def __init__(
        self, api: str, secret: str, witness: Witness, narrator: Narrator, mail: Inbox, slack: Inbox
    ) -> None:
        self._http = httpx.Client(base_url=api, timeout=10)
        self._secret, self._witness, self._narrator = secret, witness, narrator
        self._mail, self._slack = mail, slack

    def _post(self, delivery: Delivery, *, secret: str | None = None, note: str = "") -> httpx.Response:
        began = time.monotonic()
        answer = self._http.post(
            "/hooks/github", content=delivery.body, headers=delivery.headers(secret or self._secret)
        )
        took_ms = (time.monotonic() - began) * 1000
        self._narrator.say(
            "send", f"POST /hooks/github {delivery.event}{note} -> {answer.status_code}", took_ms=took_ms
        )
        return answer

    def tell(self) -> dict[str, tuple[int, int]]:
        """Play every chapter; returns expectation -> (expected, seen)."""
        witness, narrator = self._witness, self._narrator
        statuses: Counter[str] = Counter()

        narrator.chapter("A signed push arrives: a rule starts a flow")
        first = push()
        statuses[f"push {self._post(first).status_code}"] += 1
        witness.wait(
            "check-commit completed",
            lambda: witness.count("flow-run.completed", flow__name="check-commit") >= 1,
        )

        narrator.chapter("A badly signed one and a repeated one do nothing")
        statuses[f"forged {self._post(push(), secret='guessed', note=' (badly signed)').status_code}"] += 1
        repeated = self._post(first, note=" (the same delivery again)")
        statuses[f"repeated {repeated.status_code} duplicate={repeated.json().get('duplicate')}"] += 1

        narrator.chapter("No build follows within 3 seconds: something expected did not happen")
        witness.wait(
            "the missing build is told",
            lambda: len(self._mail.messages) >= 1 and len(self._slack.messages) >= 1,
        )

        narrator.chapter(
            "Three builds fail, the flow that looks into them fails three times: people are told, once"
        )
        for number in (1, 2, 3):
            statuses[f"workflow_run {self._post(failed_workflow_run(number)).status_code}"] += 1
        witness.wait(
            "three failures are told",
            lambda: len(self._mail.messages) >= 2 and len(self._slack.messages) >= 2,
        )
        witness.wait("both actions recorded", lambda: witness.count("action.executed") >= 6)

        # Nothing more may come; so listen on for a moment.
        time.sleep(QUIET_S)
        for inbox, name in ((self._mail, "mail"), (self._slack, "Slack")):
            for message in inbox.messages:
                narrator.say("message", f"{name} received: {message[:100]}")
        told = [*self._mail.messages, *self._slack.messages]
        return {
            "signed deliveries answered 202": (4, statuses["push 202"] + statuses["workflow_run 202"]),
            "badly signed delivery answered 401": (1, statuses["forged 401"]),
            "repeated delivery recognised": (1, statuses["repeated 202 duplicate=True"]),
            "github.push events": (1, witness.count("github.push")),
            "github.workflow-run events": (3, witness.count("github.workflow-run")),
            "webhook.rejected events": (1, witness.count("webhook.rejected")),
            "check-commit completed": (1, witness.count("flow-run.completed", flow__name="check-commit")),
            "triage-build failed": (3, witness.count("flow-run.failed", flow__name="triage-build")),
            "rules fired": (6, witness.count("automation.triggered")),
            "actions executed": (6, witness.count("action.executed")),
            "actions failed": (0, witness.count("action.failed") + witness.count("action.dead-lettered")),
            "mails about the missing build": (1, sum("no build of" in m for m in self._mail.messages)),
            "mails about the failing flow": (1, sum("failed 3 times" in m for m in self._mail.messages)),
            "Slack messages about the missing build": (
                1,
                sum("no build of" in m for m in self._slack.messages),
            ),
            "Slack messages about the failing flow": (
                1,
                sum("failed 3 times" in m for m in self._slack.messages),
            ),
            "messages in all": (4, len(told)),
        }


def _keep_secrets(api: str, **values: str) -> None:
    """Hand over what hark.yaml names as ``{{ secrets.… }}``, as ``hark secrets set`` does."""
    for name, value in values.items():
        httpx.put(f"{api}/api/secrets/{name}", json={"value": value}).raise_for_status()


def run() -> int:
    """Play the demo. Returns 0 if every expected effect was seen exactly once, else 1."""
    narrator = Narrator()
    github_secret = secrets.token_hex(16)
    with ExitStack() as stack:
        room = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hark-demo-")))
        mail, slack = stack.enter_context(mail_receiver()), stack.enter_context(slack_receiver())
        folder = room / "project"
        folder.mkdir()
        here = Path(__file__).parent
        for name in ("hark.yaml", "flows.py"):
            shutil.copy(here / name, folder / name)
        narrator.chapter("Starting everything: broker, server, rule engine, scheduler, worker")
        try:
            service = stack.enter_context(HarkProcess(folder, room / "home"))
            api = service.url
            narrator.say("run", f"hark up is ready on {api}", took_ms=service.ready_s * 1000)
            _keep_secrets(api, github=github_secret, mail_url=mail.url, slack_url=slack.url)
            witness = Witness(api, narrator)
            listening = threading.Event()
            thread = threading.Thread(target=witness.run, args=(listening,), name="witness", daemon=True)
            thread.start()
            stack.callback(witness.stop)
            listening.wait(5)
            outcome = Story(api, github_secret, witness, narrator, mail, slack).tell()
        except (NotSeen, UnavailableError) as exc:
            print(f"\nThe demo stopped: {exc}", file=sys.stderr)
            return 1
    narrator.chapter("Every expected effect, exactly once?")
    for what, (expected, seen) in outcome.items():
        mark = "ok " if expected == seen else "NOT"
        print(f"  {mark}  {what}: {seen} of {expected}")
    good = all(expected == seen for expected, seen in outcome.values())
    print(
        f"\n{'All as expected' if good else 'Not as expected'}, in {time.monotonic() - narrator.began:.1f} s."
    )
    return 0 if good else 1
