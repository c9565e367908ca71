"""``Secret``: a value that is kept encrypted and read by name from any process, and by templates as ``{{ secrets.name }}``."""

from __future__ import annotations

from typing import Any, ClassVar, Generic, TypeVar

import orjson
from pydantic import Field, JsonValue, SecretStr, StrictStr, field_validator
from pydantic import Secret as AnySecret

from .blocks import Block

__all__ = ["Secret"]

T = TypeVar("T", bound=StrictStr | JsonValue)


class Secret(Block, Generic[T]):
    """A text, or an object or list of JSON: ``Secret.load("github").get()``, ``Secret("…").save("github")``.

    ``load`` and ``save`` are awaited in async code. Its ``repr`` does not show it. A text stays the text it was, also where
    it looks like a number; one that is a JSON object or list is given as that.
    """

    _block_type_slug: ClassVar[str | None] = "secret"

    value: SecretStr | AnySecret[T] = Field(description="what nobody else is to see")

    def __init__(self, value: Any = ..., /, **fields: Any) -> None:
        if value is not ...:
            fields["value"] = value
        super().__init__(**fields)

    @field_validator("value", mode="before")
    @classmethod
    def _out_of_sight(cls, value: Any) -> Any:
        if isinstance(value, AnySecret | SecretStr):
            return value
        kind: Any = type(value)
        return AnySecret[kind](value)

    @property
    def name(self) -> str | None:
        """Under which it was loaded or saved; None if it was not."""
        return self._block_document_name

    def get(self) -> Any:
        """Return the value."""
        value = self.value.get_secret_value()
        if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
            try:
                return orjson.loads(value)
            except orjson.JSONDecodeError:
                return value
        return value

    def get_secret_value(self) -> str:
        """Return it as the text that templates read."""
        value = self.value.get_secret_value()
        return value if isinstance(value, str) else orjson.dumps(value).decode()
