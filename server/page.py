"""Pages for people: templates without script, and the headers that keep them so."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse

__all__ = ["page_of"]

_HEADERS = {
    # No script, no frame, nothing from elsewhere: whatever an event says, it is text.
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


@lru_cache(maxsize=1)
def _pages() -> Environment:
    folder = Path(__file__).resolve().parent / "templates"
    return Environment(loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined)


def page_of(template: str, **values: object) -> HTMLResponse:
    """Return a page; every value is text in it, whatever it looks like."""
    return HTMLResponse(_pages().get_template(template).render(**values), headers=_HEADERS)
