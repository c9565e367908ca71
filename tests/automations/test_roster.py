"""The list of keys that a checkpoint reads while they come and go."""

from __future__ import annotations

import random

from hark.automations.forms.roster import Roster


def test_a_list_that_was_lent_keeps_every_key_there_was() -> None:
    """Keys come, go and come again: the list names all there are, stays in proportion, and what is lent only grows."""
    rng = random.Random(7)
    roster, present = Roster(), dict[str, int]()
    lent, length, were = roster.names, 0, set[str]()
    for n in range(20_000):
        key = f"k{rng.randrange(3_000)}"
        if key in present:
            del present[key]
        else:
            present[key] = n
            roster.add(key, present)
        if n % 1_000 == 0:
            assert were <= set(lent[:length])
            assert present.keys() <= set(roster.names)
            lent, length, were = roster.names, len(roster.names), set(present)
    assert len(roster.names) < 8_000
    present.clear()
    roster.tidy(present)
    assert roster.names == []
