"""The one place that talks to Apprise: is this an address, and send this there. Blocking; called from threads.

Apprise takes 0.4 s and 40 MB to load, so it is loaded when first needed. It logs what it does, tokens included at
debug level: whatever is logged by any library while a message is being sent is caught here, redacted, and its
warnings become the reason of a failure.
"""

from __future__ import annotations

import contextvars
import logging
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..bus.secret import Redactor
from ..errors import DefinitionError
from .message import Message

if TYPE_CHECKING:
    from apprise import Apprise, NotifyBase
    from apprise.attachment.base import AttachBase

__all__ = ["Tried", "check_address", "check_scheme", "kind_of", "load", "schemes", "send"]

log = logging.getLogger(__name__)

_SCHEME = re.compile(r"\s*(?P<scheme>[A-Za-z][A-Za-z0-9+]{0,31})://(?P<rest>.*)", re.DOTALL)
_OURS = {"slack+http": "slackhttp", "slack+https": "slackhttps"}
_MAX_REASON = 300
_loading = threading.Lock()


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of one try at one address.

    Attributes:
        retry_after_s: what the receiver asked for, if it did.
        is_final: trying again cannot help: the address is none.
    """

    ok: bool
    reason: str = ""
    retry_after_s: float | None = None
    is_final: bool = False


@dataclass(slots=True)
class _Caught:
    """What libraries said while one message was being sent."""

    redactor: Redactor
    lines: list[tuple[int, str]] = field(default_factory=list)

    def reason(self) -> str:
        said = [text for level, text in self.lines if level >= logging.WARNING]
        details = [
            text.partition(": ")[2]
            for _, text in self.lines
            if text.startswith(("Socket Exception", "Notification Exception"))
        ]
        text = (
            "; ".join(dict.fromkeys([*said[-2:], *details[-1:]]))
            or "the service did not take it and gave no reason"
        )
        text = self.redactor.redact(" ".join(text.split()))
        return text if len(text) <= _MAX_REASON else text[: _MAX_REASON - 1] + "…"


_caught: contextvars.ContextVar[_Caught | None] = contextvars.ContextVar("hark_notify_caught", default=None)


class _AppriseFilter(logging.Filter):
    """Keeps what Apprise says while we send, and lets through what it says to others."""

    def filter(self, record: logging.LogRecord) -> bool:
        caught = _caught.get()
        if caught is None:
            # As if Apprise's logger had no level of its own.
            return record.levelno >= logging.getLogger().getEffectiveLevel()
        if len(caught.lines) < 200:
            caught.lines.append((record.levelno, record.getMessage()[:2000]))
        return False


@lru_cache(maxsize=1)
def load() -> Any:
    """Load Apprise and Hark's own service into it; return the module. Takes 0.4 s the first time."""
    with _loading, warnings.catch_warnings():
        # Its e-mail plugin imports a module that Python deprecates.
        warnings.simplefilter("ignore")
        import apprise

        from .slack_shaped import NotifySlackShaped

        manager = _manager()
        if NotifySlackShaped.protocol not in manager:
            manager.add(NotifySlackShaped)
        logger = logging.getLogger("apprise")
        logger.setLevel(logging.DEBUG)
        logger.addFilter(_AppriseFilter())
        _redact_other_loggers()
        return apprise


def _manager() -> Any:
    from apprise import manager_plugins

    untyped: Any = manager_plugins
    return untyped.NotificationManager()


def _redact_other_loggers() -> None:
    """Make records of other libraries (urllib3 logs paths, and paths are tokens) harmless while we send."""
    before = logging.getLogRecordFactory()

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        caught = _caught.get()
        if caught is not None and record.name != "apprise":
            try:
                text = record.getMessage()
            except (TypeError, ValueError):  # wrong arguments are logging's to complain of, not the library's
                text = str(record.msg)
            record.msg, record.args = caught.redactor.redact(text), ()
            # A traceback of requests ends with the path it could not reach.
            record.exc_info = None
        return record

    logging.setLogRecordFactory(factory)


@contextmanager
def _catching(redactor: Redactor) -> Iterator[_Caught]:
    caught = _Caught(redactor)
    token = _caught.set(caught)
    try:
        yield caught
    finally:
        _caught.reset(token)


@lru_cache(maxsize=1)
def schemes() -> tuple[str, ...]:
    """Return every scheme an address may have, sorted."""
    load()
    return tuple(sorted({*_manager().schemas(), *_OURS} - set(_OURS.values())))


def kind_of(url: str) -> str:
    """Return what may be shown of an address: its scheme, or ``address`` when it has none."""
    found = _SCHEME.match(url)
    return found["scheme"].lower() if found else "address"


def check_scheme(scheme: str) -> None:
    """Raise ``DefinitionError`` if no service has ``scheme``, with the one that was probably meant."""
    low = scheme.lower()
    if low in schemes():
        return
    if low in ("http", "https"):
        raise DefinitionError(
            f"{low}:// is no notification service",
            hint=f"json{'s' if low == 'https' else ''}:// posts JSON to a web address, slack+{low}:// the JSON Slack takes",
        )
    near = get_close_matches(low, schemes(), n=1, cutoff=0.6)
    raise DefinitionError(
        f"{low!r} is no notification service" + (f"; did you mean {near[0]!r}?" if near else ""),
        hint="services and their addresses: https://github.com/caronc/apprise/wiki",
    )


def check_address(url: str) -> None:
    """Raise ``DefinitionError`` if ``url`` is no address Apprise can use. The message never shows the address."""
    with _catching(Redactor([url])):
        _plugin(url)


def _plugin(url: str) -> NotifyBase:
    apprise = load()
    found = _SCHEME.match(url)
    if not found:
        raise DefinitionError(
            "an address is an Apprise URL, and this one has no scheme",
            hint="such as mailto://user:password@host, slack://token-a/token-b/token-c or json://host/path",
        )
    scheme = found["scheme"].lower()
    asset = apprise.AppriseAsset(
        app_id="Hark",
        app_desc="Hark",
        app_url="",
        async_mode=False,
        service_timeout=0,
        default_service_retry=0,
    )
    plugin: NotifyBase | None = apprise.Apprise.instantiate(
        f"{_OURS.get(scheme, scheme)}://{found['rest']}", asset=asset
    )
    if plugin is None:
        # A web address may be one that a service gives its users, such as https://hooks.slack.com/…: Apprise knows those.
        check_scheme(scheme)
        raise DefinitionError(
            f"this {scheme}:// address is not complete or not well formed", hint=_looks_like(scheme)
        )
    return plugin


def _looks_like(scheme: str) -> str:
    plugin = _manager()[_OURS.get(scheme, scheme)]
    templates = [str(t).replace("{schema}", scheme) for t in tuple(plugin.templates)[:2]]
    return f"it looks like {' or '.join(templates)}; see {plugin.setup_url}"


def send(
    url: str,
    message: Message,
    *,
    timeout_s: float,
    redactor: Redactor,
    delivered: set[Any],
    body_format: str = "text",
) -> Tried:
    """Send ``message`` to one address and return what came of it. Blocks, mostly for at most ``timeout_s``.

    Args:
        redactor: what it hides is not in the reason.
        delivered: which targets inside the address (recipients of a mail) have taken it; filled here, and passed again
            with the next try, so that only the others are tried.
    """
    missing: list[str] = []
    try:
        return _send(
            url, message, timeout_s=timeout_s, redactor=redactor, delivered=delivered, body_format=body_format,
            missing=missing,
        )  # fmt: skip
    finally:
        for one in missing:  # here, where what is logged is no longer caught
            log.warning("notification.without_attachment", extra={"attach": redactor.redact(one)})


def _send(
    url: str,
    message: Message,
    *,
    timeout_s: float,
    redactor: Redactor,
    delivered: set[Any],
    body_format: str,
    missing: list[str],
) -> Tried:
    with _catching(redactor) as caught:
        try:
            plugin = _plugin(url)
        except DefinitionError as exc:
            return Tried(False, f"{exc}; {exc.hint}", is_final=True)
        files = _files(plugin, message.attach, timeout_s, missing)
        caught.lines.clear()  # what is missing is no reason for what comes of the message
        _bound(plugin, url, timeout_s, files=len(files))
        port: Apprise = load().Apprise(asset=plugin.asset)
        port.add(plugin)
        _share_tracker(delivered)
        # Most services refuse a message without a body, and people write messages with a title only.
        bare = not message.body.strip()
        title = "" if bare and plugin.title_maxlen <= 0 else message.title
        try:
            ok = bool(
                port.notify(
                    title=title,
                    body=message.title if bare else message.body,
                    notify_type=_TYPES[message.severity.value],
                    body_format=body_format,
                    attach=files or None,
                )
            )
        except Exception as exc:  # a plugin is somebody else's code, and must not end ours
            return Tried(False, redactor.redact(f"{type(exc).__name__}: {exc}")[:_MAX_REASON])
        return Tried(True) if ok else Tried(False, caught.reason(), getattr(plugin, "retry_after_s", None))


_TYPES = {
    "info": "info",
    "success": "success",
    "warning": "warning",
    "error": "failure",
    "critical": "failure",
}


def _files(
    plugin: NotifyBase, attach: Sequence[str], timeout_s: float, missing: list[str]
) -> list[AttachBase]:
    """Return what can be had of ``attach``, downloaded where it is an address; nothing where no files are taken.

    Args:
        missing: what cannot be had is added here.

    Apprise sends nothing at all when one of them is not there: people would not be told because of a missing picture.
    """
    found: list[AttachBase] = []
    for one in attach if plugin.attachment_support else ():
        for file in load().AppriseAttachment(one, asset=plugin.asset):
            # All of them together in half of our time, so that the message still goes out.
            file.socket_connect_timeout = file.socket_read_timeout = min(4.0, timeout_s / 2 / len(attach))
            if file:
                found.append(file)
                break
        else:
            missing.append(one)
    return found


def _bound(plugin: NotifyBase, url: str, timeout_s: float, *, files: int) -> None:
    """Make the plugin's sockets give up within ``timeout_s``, and its texts fit what the service takes."""
    written = url.partition("?")[2].lower()
    # Apprise waits 4 s by default, which a slow receiver exceeds: it would be told again what it was busy taking.
    # Slightly less than our deadline, so that mostly the socket ends the thread and tells why.
    most = timeout_s * 0.95
    plugin.socket_connect_timeout = min(plugin.socket_connect_timeout, most) if "cto=" in written else most
    plugin.socket_read_timeout = min(plugin.socket_read_timeout, most) if "rto=" in written else most
    if "overflow=" not in written:
        from apprise.common import OverflowMode

        # Truncating, Apprise would send the first of several files only.
        plugin.overflow_mode = OverflowMode.TRUNCATE if files < 2 else OverflowMode.SPLIT


def _share_tracker(delivered: set[Any]) -> None:
    """Give Apprise the set in which it notes targets that have taken a message, so that it outlives one try.

    Its own retries would do so, but they run inside one call, without our deadline, back-off and events.
    """
    try:
        from apprise.plugins.base import _delivery_tracker
    except (
        ImportError
    ):  # not a public name; without it a retry may repeat a mail to some of several recipients
        return
    _delivery_tracker.set(delivered)
