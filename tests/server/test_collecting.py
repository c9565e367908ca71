"""How often all that lives is looked through for garbage."""

from __future__ import annotations

import gc

from hark.server.collecting import spaced_collections


def test_a_full_collection_that_took_long_is_not_followed_by_another_at_once() -> None:
    """One of 0.2 s holds the next off for twenty; one that is quick holds nothing off; in the end all is as it was."""
    before = gc.get_threshold()
    clock = 0.0
    with spaced_collections(lambda: clock):
        spacing = gc.callbacks[-1]

        def collected(generation: int, took_s: float) -> None:
            nonlocal clock
            for phase in ("start", "stop"):
                spacing(phase, {"generation": generation, "collected": 0, "uncollectable": 0})
                clock += took_s if phase == "start" else 0.0

        gc.disable()
        try:
            collected(2, 0.01)
            assert gc.get_threshold() == before
            collected(2, 0.2)
            assert gc.get_threshold()[:2] == before[:2]
            assert gc.get_threshold()[2] > 10**6
            clock += 19
            collected(1, 0.001)
            assert gc.get_threshold()[2] > 10**6
            clock += 2
            collected(0, 0.001)
            assert gc.get_threshold() == before
            collected(2, 3.0)
            clock += 61
            collected(1, 0.001)
            assert gc.get_threshold() == before  # a minute is the most
            collected(2, 1.0)
        finally:
            gc.enable()
    assert gc.get_threshold() == before
    assert spacing not in gc.callbacks
