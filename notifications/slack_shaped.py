"""An Apprise service for receivers that understand Slack's incoming webhooks but are not Slack.

Apprise's ``slack://`` can only reach hooks.slack.com. ``slack+http://host:port/path`` and ``slack+https://…`` post the
same JSON to any address: Mattermost, Rocket.Chat, Zulip's and Discord's (``…/slack``) compatible endpoints, a relay,
a test. Query: ``?username=…``, ``?icon=:bell:``, and Apprise's own ``verify``, ``cto``, ``rto``.

This file imports apprise; only ``apprise_port.py`` imports it, when the first message is sent.
"""

from __future__ import annotations

from typing import Any, ClassVar

import requests
from apprise.common import NotifyFormat, NotifyType
from apprise.plugins.base import NotifyBase

__all__ = ["NotifySlackShaped", "payload"]

_MARK = {
    "info": ":information_source:",
    "success": ":white_check_mark:",
    "warning": ":warning:",
    "failure": ":rotating_light:",
}
_SECTION = 3000  # Slack refuses a longer text in one block


def payload(
    title: str, body: str, kind: str, *, username: str | None = None, icon: str | None = None
) -> dict[str, Any]:
    """Return the JSON of an incoming webhook: ``blocks`` for who can show them, the same as ``text`` for who cannot."""
    text = f"*{title}*\n{body}".strip() if title else body
    blocks: list[dict[str, Any]] = []
    if title:
        blocks.append(
            {"type": "section", "text": {"type": "mrkdwn", "text": f"{_MARK[kind]} *{title[:250]}*"}}
        )
    blocks += [
        {"type": "section", "text": {"type": "mrkdwn", "text": body[i : i + _SECTION]}}
        for i in range(0, min(len(body), 10 * _SECTION), _SECTION)
    ]
    out: dict[str, Any] = {"text": text, "blocks": blocks}
    if username:
        out["username"] = username
    if icon:
        out["icon_emoji"] = icon
    return out


# Half of Apprise is typed, and what subclasses are to override is typed as None.
_Base: Any = NotifyBase


class NotifySlackShaped(_Base):  # type: ignore[misc]
    """Posts Slack-shaped JSON to any HTTP address."""

    service_name = "Slack-shaped webhook"
    service_url = "https://api.slack.com/messaging/webhooks"
    setup_url = "https://api.slack.com/messaging/webhooks"
    # Apprise takes letters and digits only in a scheme; `slack+http` is rewritten before it looks.
    protocol = "slackhttp"
    secure_protocol = "slackhttps"
    request_rate_per_sec = 0
    title_maxlen = 250
    body_maxlen = 30_000
    notify_format = NotifyFormat.TEXT
    templates: ClassVar[Any] = ("{schema}://{host}/{path}", "{schema}://{host}:{port}/{path}")
    template_tokens: ClassVar[Any] = dict(
        _Base.template_tokens,
        host={"name": "Hostname", "type": "string", "required": True},
        port={"name": "Port", "type": "int", "min": 1, "max": 65535},
        path={"name": "Path", "type": "string", "private": True, "map_to": "fullpath"},
    )
    template_args: ClassVar[Any] = dict(
        _Base.template_args,
        username={"name": "Name of the sender", "type": "string"},
        icon={"name": "Emoji of the sender", "type": "string"},
    )

    retry_after_s: float | None = None
    """What the receiver asked for when it refused, in seconds."""

    def __init__(self, username: str | None = None, icon: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.username, self.icon = username, icon

    def send(
        self, body: str, title: str = "", notify_type: NotifyType = NotifyType.INFO, **kwargs: Any
    ) -> bool:
        """Post one message; False when it was not taken, with the reason in Apprise's log."""
        scheme = "https" if self.secure else "http"
        port = f":{self.port}" if self.port else ""
        self.throttle()
        try:
            answer = requests.post(
                f"{scheme}://{self.host}{port}{self.fullpath}",
                json=payload(title, body, notify_type.value, username=self.username, icon=self.icon),
                headers={"User-Agent": self.app_id},
                verify=self.verify_certificate,
                timeout=self.request_timeout,
                allow_redirects=self.redirects,
            )
        except requests.ReadTimeout:
            _, limit_s = self.request_timeout
            self.logger.warning("The receiver did not answer within %.0f s", limit_s)
            return False
        except requests.RequestException as exc:
            self.logger.warning("The receiver could not be reached: %s", type(exc).__name__)
            self.logger.debug("Socket Exception: %s", exc)
            return False
        with answer:
            if answer.status_code // 100 == 2:
                return True
            after = answer.headers.get("Retry-After", "")
            self.retry_after_s = float(after) if after.isdigit() else None
            said = f"The receiver answered {answer.status_code}: {answer.text.strip()[:100]}"
            self.logger.warning("%s", said.rstrip(": "))
        return False

    def url(self, privacy: bool = False, *args: Any, **kwargs: Any) -> str:
        """Return the address again; ``privacy`` leaves the path out."""
        port = f":{self.port}" if self.port else ""
        path = "/****" if privacy else self.fullpath
        return f"{self.secure_protocol if self.secure else self.protocol}://{self.host}{port}{path}"

    @staticmethod
    def parse_url(url: str) -> dict[str, Any] | None:
        """Return the constructor's arguments in ``url``, None if it names no host."""
        found: dict[str, Any] | None = _Base.parse_url(url)
        if not found:
            return None
        for name in ("username", "icon"):
            if value := found["qsd"].get(name):
                found[name] = _Base.unquote(value)
        return found
