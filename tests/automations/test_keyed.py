"""State by key in parts, and deadlines in order: what a dictionary and a sorted list would say, and never all at once."""

from __future__ import annotations

import random

from hark.automations.folding.deadlines import Deadline, Deadlines
from hark.automations.forms.keyed import Keyed


def test_state_in_parts_is_that_of_a_dictionary() -> None:
    """Keys come, change, go and are swept; whoever holds the parts of one moment finds what stood there and stays."""
    rng = random.Random(7)
    keyed, plain = Keyed[str, int](), dict[str, int]()
    swept: list[int] = []

    def gone_of(part: dict[str, int]) -> list[str]:
        swept.append(len(part))
        return [key for key, state in part.items() if not state]

    held, then = keyed.parts.copy(), set[str]()
    for n in range(60_000):
        key = f"k{rng.randrange(20_000)}"
        part = keyed.part(key)
        if n % 3 == 0 and key in part:
            part[key] = plain[key] = 0  # it is gone, whether or not it has been swept
        elif key not in part:
            part[key] = plain[key] = n + 1
            if keyed.is_full(key):
                keyed.sweep(key, gone_of)
        if n == 30_000:
            held, then = keyed.parts.copy(), {key for key, state in plain.items() if state}
    assert len(keyed.parts) > 1
    assert {key: state for key, state in keyed.items() if state} == {k: s for k, s in plain.items() if s}
    assert {key for key in then if plain[key]} <= {key for part in held for key in part}
    assert len(keyed) == len(keyed.whole()) == len(list(keyed)) < len(plain)
    assert keyed.of(["k1", "none"]).keys() <= {"k1"}
    assert len(swept) > 64
    assert max(swept) <= 8_192
    again = Keyed[str, int]()
    again.update(keyed.items())
    again.update([("more", 1)])
    assert again.whole() == {**keyed.whole(), "more": 1}


def test_what_was_added_again_and_again_is_kept_once() -> None:
    """A few keys that set their deadlines thousands of times: they come in order, and do not pile up."""
    rng = random.Random(7)
    open_: dict[str, float] = {}
    deadlines = Deadlines(
        lambda d: open_.get(d[2]) == d[0],
        lambda: [(at, "r", key, False) for key, at in open_.items()],
        lambda: len(open_),
    )
    popped: list[Deadline] = []
    most, now = 0, 0.0
    for n in range(60_000):
        now += 1
        key = f"k{rng.randrange(300)}"
        open_[key] = float(10**6) if n % 2 else now + rng.randrange(500)
        deadlines.add((open_[key], "r", key, False))
        assert deadlines.first <= open_[key]
        while deadlines.first <= now:
            deadline = deadlines.pop()
            assert deadline[0] <= now
            if open_.get(deadline[2]) == deadline[0]:
                del open_[deadline[2]]
                popped.append(deadline)
        most = max(most, len(deadlines))
    assert most < 8_000
    assert len(popped) > 1_000
    assert deadlines.next_open() == min(open_.values())
    left = []
    while (at := deadlines.next_open()) is not None:
        assert at == deadlines.first
        left.append(deadlines.pop())
        open_.pop(left[-1][2])
    assert left == sorted(left)
    assert not open_
