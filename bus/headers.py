"""Headers of messages, as they travel and parsed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

__all__ = ["Headers", "parse_headers"]


def parse_headers(block: bytes) -> dict[str, str]:
    """Return the headers of a message; an inline status is ``Status`` and ``Description``."""
    first, _, rest = block.partition(b"\r\n")
    out: dict[str, str] = {}
    if len(first) > 9:
        status, _, description = first[9:].decode("utf-8", "replace").partition(" ")
        out["Status"] = status
        if description:
            out["Description"] = description
    for line in rest.decode("utf-8", "replace").split("\r\n"):
        name, colon, value = line.partition(":")
        if colon:
            out[name] = value.strip()
    return out


class Headers(Mapping[str, str]):
    """Headers that are parsed when somebody looks at them."""

    __slots__ = ("_block", "_parsed")

    def __init__(self, block: bytes) -> None:
        self._block = block
        self._parsed: dict[str, str] | None = None

    def _all(self) -> dict[str, str]:
        if self._parsed is None:
            self._parsed = parse_headers(self._block) if self._block else {}
        return self._parsed

    def __getitem__(self, name: str) -> str:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __repr__(self) -> str:
        return repr(self._all())
