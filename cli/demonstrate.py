"""``hark demo``."""

from __future__ import annotations

import typer


def demo() -> None:
    """Play the main job end to end on an embedded broker in a temporary home, and check every effect."""
    from .demo import run

    code = run()
    if code:
        raise typer.Exit(code)
