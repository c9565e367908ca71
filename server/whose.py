"""Whose a home is: what another user's process makes in it, its owner's cannot open later."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["said_of_owner"]


def said_of_owner(home: Path) -> tuple[str, str] | None:
    """Return that a home is another user's than this process's, and what to do then; None if it is ours, or not there yet."""
    try:
        owner = home.stat().st_uid
    except OSError:
        return None
    if os.name != "posix" or owner == os.geteuid():
        return None
    name, we = _name_of(owner), _name_of(os.geteuid())
    return (
        f"{home} belongs to {name}, and this process is {we}'s: {name} cannot open what it makes there",
        f"run it as {name} (`sudo -u {name} env HARK_HOME={home} hark up`); what {we} has made there already: `chown -R {name} {home}`",
    )


def _name_of(uid: int) -> str:
    import pwd  # not on Windows

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"
