"""What the listing of silences says is what makes them."""

from __future__ import annotations

import pytest
from hark.cli.silences import in_words
from hark.notifications.silence import matchers


@pytest.mark.parametrize(
    "words",
    [
        ["automation=etl-failing", "severity!=critical", "data.host=~web.*", "title!~.*test, really.*"],
        ["data.n=5", "key!=1.0", "data.on=true", 'data.id="7"', 'title="two words"', 'note=""', 'data.x=">= 2"'],
    ],
)  # fmt: skip
def test_a_silence_is_listed_in_the_words_that_make_it(words: list[str]) -> None:
    """Each matcher as it is written; what only the API can say is shown as it is kept."""
    assert in_words(matchers(words)) == ", ".join(words)
    assert in_words({"data.n": {"gt": 5}, "key": ["a", "b"]}) == 'data.n: {"gt":5}, key: ["a","b"]'
