"""Where a flow is found: ``path/file.py:function``, or ``package.module:function``."""

from __future__ import annotations

__all__ = ["split_entrypoint"]


def split_entrypoint(text: str) -> tuple[str, str]:
    """Return (where, what) of ``path/file.py:function`` or ``package.module:function``.

    Raises:
        ValueError: there is no ``:name`` at the end; the message shows both forms.
    """
    where, colon, what = text.rpartition(":")
    if not colon or not where or not all(part.isidentifier() for part in what.split(".")):
        raise ValueError(
            f"{text!r} is not an entrypoint: write 'path/file.py:function' or 'package.module:function'"
        )
    return where, what
