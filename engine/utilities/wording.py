"""Words and texts for people: made-up names, texts cut to a length, secrets that are not to be read."""

from __future__ import annotations

import random
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from ..runs.naming import ADJECTIVES, default_run_name

__all__ = ["fuzzy_match_string", "generate_slug", "obfuscate", "obfuscate_string", "truncated_to"]

_STARS = 8
_SHOWN, _BEHIND = 4, 10
"""Of a secret at most so many characters are shown, and only such as stand behind so many others."""


def generate_slug(n_words: int) -> str:
    """Return so many words with dashes between them, such as ``brave-otter`` for two."""
    if n_words < 2:
        return default_run_name().rpartition("-")[2] if n_words == 1 else ""
    return "-".join([*(random.choice(ADJECTIVES) for _ in range(n_words - 2)), default_run_name()])  # noqa: S311  no secret


def obfuscate(s: Any, show_tail: bool = False) -> str:
    """Return what stands for a value in its place: eight characters, stars; see ``obfuscate_string``."""
    return obfuscate_string("" if s is None else str(s), show_tail=show_tail)


def obfuscate_string(s: str, show_tail: bool = False) -> str:
    """Return eight stars; with ``show_tail`` the last up to four are those of a text that is longer than ten."""
    tail = s[max(_BEHIND, len(s) - _SHOWN) :] if show_tail else ""
    return "*" * (_STARS - len(tail)) + tail


def truncated_to(length: int, value: str | None) -> str:
    """Return a text of about ``length`` characters: its beginning, how many are left out, its end. None is empty."""
    text = value or ""
    half = length // 2
    if len(text) <= length:
        return text
    cut = f"{text[:half]}...{len(text) - 2 * half} additional characters...{text[len(text) - half :]}"
    return min(text, cut, key=len)


def fuzzy_match_string(
    word: str, possibilities: Iterable[str], *, n: int = 1, cutoff: float = 0.6
) -> str | None:
    """Return the word that is most like another; None if none is like it by ``cutoff``, from 0 to 1."""
    return next(iter(get_close_matches(word, list(possibilities), n=n, cutoff=cutoff)), None)
