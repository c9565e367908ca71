"""Whom a rule tells where the event decides: a channel by name; no address of the sender's, and no template of theirs."""

from __future__ import annotations

import pytest
from hark.automations.acting.recipient import RecipientRefused, recipient
from hark.template import render

SECRETS = {"slack": "slack://token", "smtp": "user:pass@mx"}


@pytest.mark.parametrize(
    ("template", "sent", "says"),
    [
        ("{{ event.data.to }}", "oncall", "oncall"),
        ("team-{{ event.data.to }}", "db", "team-db"),
        ("{{ secrets.slack }}", "anything", "slack://token"),
        ("mailto://{{ secrets.smtp }}/?to={{ event.data.to }}", "a@b.example", None),
        ("{{ event.data.to }}", "json://evil.example/", "may only name a channel"),
        ("{{ event.data.to }}", "json://evil.example/{{ secrets.slack }}", "filled in with secrets"),
        ("{{ event.data.to }}", "{% if 1 %}json://evil.example{% endif %}", "filled in with secrets"),
        ("{{ key }}", "json://evil.example/", "may only name a channel"),
        ("{% if event.data.to == 'a' %}{{ secrets.slack }}{% else %}ops{% endif %}", "a", "slack://token"),
        ("{% if key == '/a' %}{{ secrets.slack }}{% else %}mailto://b{% endif %}", "/a", "slack://token"),
        ("{{ 'mailto://ops@x.example' if event.data.to else 'ops' }}", "b", "mailto://ops@x.example"),
        ("{{ secrets.slack }}/{{ event.data.to }}", "general", "slack://token/general"),
        ("{# ops:// #}{{ event.data.to }}", "json://evil.example/", "may only name a channel"),
        ("{{ event.data.to }}//evil.example", "json:", "may only name a channel"),
        ("mailto://{{ event.data.to }}", "a@b.example, json://evil.example/", "may only name a channel"),
        (
            "mailto://{{ secrets.smtp }}/?to={{ event.data.to }}",
            "{{ secrets.slack }}",
            "filled in with secrets",
        ),
    ],
)
def test_an_event_names_a_channel_and_no_address(template: str, sent: str, says: str | None) -> None:
    """Secrets and variables are ours and may hold an address; what the event holds is filled in once, and is none."""
    context = {"event": {"data": {"to": sent}}, "key": sent, "secrets": SECRETS}
    if says is None or "://" in says or " " not in says:
        assert recipient(template, context) == (says or render(template, context))
    else:
        with pytest.raises(RecipientRefused, match=says):
            recipient(template, context)
