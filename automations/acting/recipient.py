"""Whom a rule tells, where the event decides: a channel by its name, and no address of the sender's. Pure.

Who may send an event may write anything into it. Were that taken for an address, the sender would say where messages go; were
it taken for a template, the sender could have any secret sent there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...errors import TemplateError
from ...template import render, template_roots

__all__ = ["RecipientRefused", "host_of", "is_chosen_by_event", "recipient"]

_OURS = frozenset({"secrets", "variables", "automation", "env"})
"""Names that whoever runs this has given values to; all others may hold what the sender of an event wrote."""
_GIVEN = frozenset({"secrets", "variables"})
"""Of these, those that may hold an address."""
_MARKS = ("{{", "{%", "{#")
_HOST = re.compile(r"(?:[a-zA-Z][a-zA-Z0-9+.-]*://)?(?:\{\{.*?\}\}|[^/?#])*", re.DOTALL)
"""What stands in templates counts whole, whatever is in it; matches every text."""
_OF_ADDRESSES = str.maketrans("", "", ":")


class RecipientRefused(ValueError):
    """An event made an address, or a template, where it may only name a channel."""


def is_chosen_by_event(template: str) -> bool:
    """Return whether what an event holds decides what a template gives."""
    try:
        return bool(template_roots(template) - _OURS)
    except TemplateError:
        return False  # it fails by itself


def host_of(template: str) -> str:
    """Return what of a template of a URL says which host is called: up to the path, the query or the fragment."""
    return template if "{%" in template else _HOST.match(template)[0]  # type: ignore[index]


def recipient(template: str, context: Mapping[str, Any]) -> str:
    """Return what ``template`` gives: the name of a channel, or an address.

    An event may choose among addresses that the rule, a secret or a variable gives, and fill in what comes behind their
    beginning: without the colons in it the template has to begin the same address.

    Raises:
        RecipientRefused: what the event holds made it an address, or put a template into it.
        TemplateError: as ``render``.
    """
    rendered = render(template, context)
    if not is_chosen_by_event(template):
        return rendered
    if any(mark in rendered for mark in _MARKS):
        raise RecipientRefused(
            "the event put a template into whom to tell, which would be filled in with secrets"
        )
    if "://" in rendered:
        try:
            harmless = {n: v if n in _GIVEN else _without_addresses(v) for n, v in context.items()}
            without = render(template, harmless)
        except TemplateError:
            without = ""
        begin = rendered.partition("://")[0]
        if without.count("://") != rendered.count("://") or without.partition("://")[0] != begin:
            raise RecipientRefused(
                f"the event gave an address ({begin[:40]}://…), and may only name a channel"
            )
    return rendered


def _without_addresses(value: Any) -> Any:
    if isinstance(value, str):
        return value.translate(_OF_ADDRESSES)
    if isinstance(value, list):
        return [_without_addresses(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_addresses(item) for key, item in value.items()}
    return value
