"""What a webhook says of who may send: ``verify: {preset: github, secret: …}``, a model for each preset.

What each of them checks is in ``verify.py``.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ..duration import Duration
from ..errors import TemplateError
from ..template import check_template

__all__ = [
    "PLACEHOLDER", "PRESETS", "BasicVerify", "BearerVerify", "CloudEventsVerify", "GithubVerify", "GitlabVerify",
    "HmacVerify", "NoneVerify", "Secrets", "ShopifyVerify", "SlackVerify", "StandardWebhooksVerify", "StripeVerify",
    "Verify",
]  # fmt: skip

PRESETS = (
    "github", "gitlab", "stripe", "slack", "shopify", "standard-webhooks", "cloudevents", "hmac", "bearer", "basic",
    "none",
)  # fmt: skip
PLACEHOLDER = re.compile(r"\{([a-z]+)\}")
"""What may stand in ``signed`` of ``HmacVerify``: its name is the first group."""


def _one_or_more(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _checked(value: str) -> str:
    try:
        check_template(value)
    except TemplateError as exc:
        raise ValueError(f"the template of a secret does not parse: {exc.__cause__}") from exc
    if not value.strip():
        raise ValueError("a secret is not empty: anybody can sign with an empty one")
    return value


Secrets: TypeAlias = Annotated[
    tuple[str, ...],
    BeforeValidator(_one_or_more),
    Field(min_length=1, max_length=5),
]
"""One secret, or several that are valid at once while they are being changed. Templates: ``{{ secrets.github }}``."""


class _Verify(BaseModel):
    # A secret may be written out where a template belongs, and an error message must not repeat it.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, hide_input_in_errors=True)

    tolerance: Duration | None = Field(None, description="largest age of a signed timestamp, either way")

    def templates(self) -> tuple[str, ...]:
        """Return what must be rendered to make ``Keys``: the secrets, then the user if there is one."""
        return ()


class _Secret(_Verify):
    secret: Secrets = Field(repr=False)

    @model_validator(mode="after")
    def _secrets_are_templates(self) -> Any:
        for text in self.secret:
            _checked(text)
        return self

    def templates(self) -> tuple[str, ...]:
        return self.secret


class GithubVerify(_Secret):
    preset: Literal["github"]


class GitlabVerify(_Secret):
    """A secret token (plain), or a signing token (begins with ``whsec_``)."""

    preset: Literal["gitlab"]


class StripeVerify(_Secret):
    preset: Literal["stripe"]


class SlackVerify(_Secret):
    preset: Literal["slack"]


class ShopifyVerify(_Secret):
    preset: Literal["shopify"]


class StandardWebhooksVerify(_Secret):
    """``secret`` is base64, with or without ``whsec_`` before it."""

    preset: Literal["standard-webhooks"]


class CloudEventsVerify(_Secret):
    """``secret`` is the bearer token. ``allowed_origins``: who may ask by OPTIONS whether it may deliver; any if empty or ``*``."""

    preset: Literal["cloudevents"]
    allowed_origins: tuple[str, ...] = ()


class BearerVerify(_Secret):
    """``Authorization: Bearer <secret>``; or another ``header`` that holds ``scheme`` and secret, or the secret alone."""

    preset: Literal["bearer"]
    header: str = "authorization"
    scheme: str = "Bearer"


class BasicVerify(_Secret):
    """HTTP basic authentication; ``secret`` is the password."""

    preset: Literal["basic"]
    user: str

    def templates(self) -> tuple[str, ...]:
        return (*self.secret, self.user)


class HmacVerify(_Secret):
    """An HMAC in a header, as most services have it.

    Attributes:
        header: the header with the signature; several may stand in it, separated by commas.
        prefix: what stands before each signature, such as ``sha256=``.
        signed: what is signed, with ``{body}`` and, if wanted, ``{timestamp}``, ``{id}``, ``{method}``.
        timestamp_header, id_header: the headers those come from. A timestamp is Unix seconds or milliseconds, or ISO 8601.
    """

    preset: Literal["hmac"]
    header: str
    prefix: str = ""
    algorithm: Literal["sha1", "sha256", "sha384", "sha512"] = "sha256"
    encoding: Literal["hex", "base64"] = "hex"
    signed: str = "{body}"
    timestamp_header: str | None = None
    id_header: str | None = None

    @model_validator(mode="after")
    def _sound(self) -> HmacVerify:
        parts = set(PLACEHOLDER.findall(self.signed))
        unknown = parts - {"body", "timestamp", "id", "method"}
        if unknown:
            raise ValueError(
                f"`signed` may hold {{body}}, {{timestamp}}, {{id}}, {{method}}; not {{{min(unknown)}}}"
            )
        if "body" not in parts:
            raise ValueError("`signed` must hold {body}: what is not signed can be changed on the way")
        if "timestamp" in parts and self.timestamp_header is None:
            raise ValueError("`signed` holds {timestamp}, so `timestamp_header` must say where it is sent")
        if "id" in parts and self.id_header is None:
            raise ValueError("`signed` holds {id}, so `id_header` must say where it is sent")
        if self.timestamp_header is not None and "timestamp" not in parts:
            raise ValueError(
                "`timestamp_header` is given, but {timestamp} is not in `signed`, so it proves nothing"
            )
        return self


class NoneVerify(_Verify):
    """Anybody may send. Must be written out: ``verify: none``."""

    preset: Literal["none"]


def _named_preset(value: object) -> object:
    """Let ``verify: none`` stand for ``{preset: none}``, and say what is missing where a preset is."""
    if isinstance(value, BaseModel):
        return value
    if value == "none":
        return {"preset": "none"}
    choices = ", ".join(PRESETS)
    if isinstance(value, str) and value in PRESETS:
        raise ValueError(
            f"preset {value} needs a secret: {{preset: {value}, secret: '{{{{ secrets.{value} }}}}'}}"
        )
    if not isinstance(value, dict) or "preset" not in value:
        raise ValueError(f"`verify` needs a preset ({choices}); `verify: none` lets anybody send")
    preset = value["preset"]
    if preset not in PRESETS:
        near = get_close_matches(str(preset), PRESETS, n=1)
        raise ValueError(
            f"there is no preset {preset!r}" + (f"; did you mean {near[0]!r}?" if near else f" ({choices})")
        )
    if preset != "none" and not value.get("secret"):
        raise ValueError(f"preset {preset} needs a `secret`, such as '{{{{ secrets.{preset} }}}}'")
    return value


Verify: TypeAlias = Annotated[
    Annotated[
        GithubVerify | GitlabVerify | StripeVerify | SlackVerify | ShopifyVerify | StandardWebhooksVerify
        | CloudEventsVerify | HmacVerify | BearerVerify | BasicVerify | NoneVerify,
        Field(discriminator="preset"),
    ],
    BeforeValidator(_named_preset),
]  # fmt: skip
