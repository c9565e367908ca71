"""A channel: a named way to tell people, as written in ``hark.yaml`` and kept in the bucket ``channels``."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from ..duration import RateSpec
from ..errors import DefinitionError, TemplateError
from ..template import check_template

__all__ = ["Channel", "Template"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")
_LITERAL_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+]{0,31})://")


class Template(BaseModel):
    """How one kind of service is written to. ``format`` is what the body is, for services that can show it."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    title: str | None = None
    body: str | None = None
    format: Literal["text", "markdown", "html"] = "text"

    @field_validator("title", "body")
    @classmethod
    def _parses(cls, value: str | None) -> str | None:
        if value is not None:
            _check_template(value)
        return value


def _family(kind: str) -> str:
    """Return the kind a secure or renamed form of it belongs to: ``mailtos`` is written to like ``mailto``."""
    return {"mailtos": "mailto", "jsons": "json", "slack+http": "slack", "slack+https": "slack"}.get(
        kind.lower(), kind.lower()
    )


class Channel(BaseModel):
    """Addresses under a name. An address is an Apprise URL and holds a token: it is never shown, only its scheme.

    Addresses are checked by Apprise when the channel is defined, as far as they are known then: one that is a template
    is checked when it is rendered. With ``context={"trusted": True}`` (what is in the bucket was checked on its way in)
    that check, which loads Apprise, is left out.
    """

    # Pydantic would quote the input, which holds the token, in the text of its errors.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, hide_input_in_errors=True)

    name: str = Field(description="how rules and `send` call it")
    urls: tuple[str, ...] = Field(
        min_length=1, max_length=100, repr=False, description="Apprise URLs; may hold {{ secrets.x }}"
    )
    rate: RateSpec | None = Field(
        None, description="messages per time, such as 10/m; what is over comes as one summary"
    )
    title: str | None = Field(None, description="template of the title, from title, body, severity, event")
    body: str | None = Field(None, description="template of the body, from title, body, severity, event")
    templates: dict[str, Template] = Field(
        default_factory=dict,
        description="title, body and format for one kind of service, by the scheme of its address",
    )
    description: str = ""

    @field_validator("templates")
    @classmethod
    def _kinds(cls, value: dict[str, Template]) -> dict[str, Template]:
        return {kind.lower(): template for kind, template in value.items()}

    def template_for(self, kind: str) -> Template:
        """Return what is written for a kind of service, filled up with what is written for all."""
        own = self.templates.get(kind.lower()) or self.templates.get(_family(kind)) or Template()
        return Template(title=own.title or self.title, body=own.body or self.body, format=own.format)

    @field_validator("name")
    @classmethod
    def _is_name(cls, value: str) -> str:
        if len(value) > 100 or not _NAME.fullmatch(value):
            raise ValueError("a name is letters, digits, - _ and single dots between them, 100 at most")
        if value == "routes":
            raise ValueError("`notify: routes` is the routing tree, so no channel can be named routes")
        return value

    @field_validator("urls", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("title", "body")
    @classmethod
    def _is_template(cls, value: str | None) -> str | None:
        if value is not None:
            _check_template(value)
        return value

    @field_validator("urls")
    @classmethod
    def _are_addresses(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if info.context and info.context.get("trusted"):
            return value
        for i, url in enumerate(value, 1):
            where = f"address {i}: " if len(value) > 1 else ""
            try:
                check_url(url)
            except DefinitionError as exc:
                hint = f" ({exc.hint})" if exc.hint else ""
                # Not `from exc`: a template's error quotes the template, and the template holds the token.
                raise ValueError(f"{where}{exc}{hint}") from None
        return value

    @property
    def kinds(self) -> tuple[str, ...]:
        """The scheme of each address, ``secret`` where even that is one."""
        return tuple(m[1].lower() if (m := _LITERAL_SCHEME.match(url)) else "secret" for url in self.urls)


def check_url(url: str) -> None:
    """Raise ``DefinitionError`` if an address that may hold templates cannot be one, as far as it is written out."""
    from .apprise_port import check_address, check_scheme

    if "{{" not in url and "{%" not in url and "{#" not in url:
        check_address(url)
        return
    try:
        check_template(url)
    except TemplateError:
        raise DefinitionError("the template in this address does not parse") from None
    if literal := _LITERAL_SCHEME.match(url):
        check_scheme(literal[1])


def _check_template(text: str) -> None:
    try:
        check_template(text)
    except TemplateError as exc:
        raise ValueError(str(exc)) from exc
