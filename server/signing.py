"""Signing a request as the sender of a webhook would, for trying webhooks out."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..errors import DefinitionError
from ..triggers.preset import Verify
from ..triggers.signing import sign
from ..triggers.verify import Keys
from ..vocabulary import JsonObject

__all__ = ["signed_headers"]


def signed_headers(verify: JsonObject, *, body: bytes, secret: str, event: str = "") -> dict[str, str]:
    """Return the headers a genuine sender would add.

    Args:
        verify: the webhook's ``verify`` as the server shows it, its secret not resolved.
        secret: the real one; ``user:password`` or the password alone for basic.
        event: what the sender calls the event, where it says so in a header.
    Raises:
        DefinitionError: the webhook's ``verify`` is of a kind this version does not know, or nothing can be signed with
            this secret.
    """
    if verify.get("preset") == "none":
        return {}
    user = str(verify.get("user", ""))
    if verify.get("preset") == "basic" and ":" in secret:
        user, _, secret = secret.partition(":")
    adapter: TypeAdapter[Any] = TypeAdapter(Verify)
    try:
        rule = adapter.validate_python({**verify, "secret": "{{ secrets.unused }}"})
    except ValidationError as exc:
        raise DefinitionError(
            f"cannot sign for preset {verify.get('preset')!r}: {exc.errors()[0]['msg']}"
        ) from exc
    headers = sign(rule, Keys((secret,), user), body, now=datetime.now(UTC), event=event)
    if headers.get("webhook-signature") == "":
        raise DefinitionError(
            "this cannot be the secret of a sender that signs as Standard Webhooks does",
            hint="such a secret is `whsec_` and base64; without the prefix, base64 alone",
        )
    return headers
