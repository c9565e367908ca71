"""``hark demo``: the main job, end to end, on an embedded broker in a temporary home."""

from .story import run

__all__ = ["run"]
