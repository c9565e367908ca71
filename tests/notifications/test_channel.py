"""Channels: what is wrong with them is said when they are defined, and never with the token."""

from __future__ import annotations

import pytest
from hark.notifications import Channel
from pydantic import ValidationError

TOKEN = "T0K3NT0K3NT0K3N"


@pytest.mark.parametrize(
    "url",
    [
        "json://127.0.0.1:8080/hook", "mailto://user:pass@mail.example.com?from=a@example.com&to=b@example.com",
        "slack://TAAAAAAAA/BAAAAAAAA/cccccccccccccccccccccccc", "https://hooks.slack.com/services/TAAAAAAAA/BAAAAAAAA/cccccccccccccccccccccccc",
        "slack+http://127.0.0.1:99/services/T/B/X", "slack+https://chat.example.com/hooks/x?username=hark", "ntfy://topic",
        "{{ secrets.slack_url }}", "mailto://{{ secrets.smtp }}", "discord://1234567/{{ secrets['a'] }}",
    ],
)  # fmt: skip
def test_any_address_apprise_knows_is_taken(url: str) -> None:
    """Services of Apprise, the web addresses services give out, Hark's own Slack-shaped ones, and templates."""
    assert Channel(name="a", urls=url).urls == (url,)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (f"slak://{TOKEN}/{TOKEN}", "'slak' is no notification service; did you mean 'slack'"),
        (f"maitlo://{TOKEN}@x", "did you mean 'mailto'"),
        (f"slack://{TOKEN}", r"this slack:// address is not complete.*slack://\{token_a\}"),
        (f"https://example.com/{TOKEN}", "jsons:// posts JSON"),
        (f"http://user:{TOKEN}@example.com", r"slack\+http://"),
        (TOKEN, "no scheme"),
        (f"slak://{{{{ secrets.{TOKEN} }}}}", "did you mean 'slack'"),
        (f"slack://{TOKEN}/{{{{ secrets.x", "template in this address does not parse"),
        (f"slack+http://:bad port/{TOKEN}", r"slack\+http:// address is not"),
    ],
)  # fmt: skip
def test_a_wrong_address_is_refused_without_showing_it(url: str, says: str) -> None:
    """The error names the service and what was probably meant, and nothing of the address stands anywhere in it."""
    with pytest.raises(ValidationError, match=says) as refused:
        Channel(name="oncall", urls=("json://localhost", url))
    assert "address 2" in str(refused.value)
    shown = f"{refused.value} {refused.value!r} {refused.value.__cause__!r} {refused.value.__context__!r}"
    assert TOKEN not in shown.replace(f"secrets.{TOKEN}", "")
    assert all(TOKEN not in str(e["msg"]) for e in refused.value.errors())


def test_the_rest_of_a_channel_is_checked_too() -> None:
    """Names that no bucket takes, rates that are none, templates that do not parse, unknown words."""
    good: dict[str, object] = {"name": "oncall", "urls": ["json://localhost"]}
    wrongs: list[dict[str, object]] = [
        {"name": "a b"}, {"name": "a..b"}, {"name": ""}, {"name": "x" * 101}, {"urls": []}, {"rate": "fast"}, {"rate": 5},
        {"title": "{{ x"}, {"body": "{% if %}"}, {"colour": "red"},
    ]  # fmt: skip
    for wrong in wrongs:
        with pytest.raises(ValidationError):
            Channel.model_validate({**good, **wrong})
    channel = Channel.model_validate(
        {**good, "rate": "10/m", "urls": [f"json://localhost/{TOKEN}", "{{ secrets.x }}"]}
    )
    assert str(channel.rate) == "10/m"
    assert channel.kinds == ("json", "secret")
    assert TOKEN not in f"{channel!r} {channel}"
    assert Channel.model_validate_json(channel.model_dump_json()) == channel
