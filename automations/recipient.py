"""Whom a rule tells, where the event decides: a channel by its name, and no address of the sender's. Pure.

Who may send an event may write anything into it. Were that taken for an address, the sender would say where messages go; were
it taken for a template, the sender could have any secret sent there.
"""

from __future__ import annotations

from ..errors import TemplateError
from ..template import template_roots

__all__ = ["RecipientRefused", "is_chosen_by_event", "recipient"]

_OURS = frozenset({"secrets", "variables", "automation", "env"})
"""Names that whoever runs this has given values to; all others may hold what the sender of an event wrote."""
_MARKS = ("{{", "{%", "{#")


class RecipientRefused(ValueError):
    """An event made an address, or a template, where it may only name a channel."""


def is_chosen_by_event(template: str) -> bool:
    """Return whether what an event holds decides what a template gives."""
    try:
        return bool(template_roots(template) - _OURS)
    except TemplateError:
        return False  # it fails by itself


def recipient(template: str, rendered: str) -> str:
    """Return ``rendered``, the name of a channel or an address, which ``template`` gave.

    Raises:
        RecipientRefused: what the event holds made it an address, or put a template into it.
    """
    if not is_chosen_by_event(template):
        return rendered
    if any(mark in rendered for mark in _MARKS):
        raise RecipientRefused(
            "the event put a template into whom to tell, which would be filled in with secrets"
        )
    if "://" in rendered and "://" not in template.partition("{{")[0]:
        raise RecipientRefused(
            f"the event gave an address ({rendered.partition('://')[0][:40]}://…), and may only name a channel"
        )
    return rendered
