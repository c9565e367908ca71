"""When to try again."""

from __future__ import annotations

import itertools

import pytest
from hark.engine.options.retry import MAX_DELAYS, check_delays, exponential_backoff, jittered_s, retry_delay_s
from hypothesis import given
from hypothesis import strategies as st

delays = st.floats(0, 1e6, allow_nan=False)
draws = st.floats(0, 1, exclude_max=True, allow_nan=False)


@given(st.lists(delays, max_size=MAX_DELAYS), st.integers(1, 100))
def test_the_last_delay_of_a_list_repeats(items: list[float], retry: int) -> None:
    """Retry n waits the n-th delay, and the last one from then on; an empty list waits for nothing."""
    checked = check_delays(items, retries=retry)
    expected = 0.0 if not items else items[min(retry, len(items)) - 1]
    assert retry_delay_s(checked, retry=retry) == expected


@given(delays, st.integers(1, 100))
def test_one_number_is_every_delay(delay: float, retry: int) -> None:
    """A number waits the same before each retry."""
    assert retry_delay_s(check_delays(delay, retries=3), retry=retry) == delay


@given(delays, st.floats(0, 10, allow_nan=False), draws)
def test_jitter_stays_in_its_range(delay: float, factor: float, draw: float) -> None:
    """The delay is within `delay * (1 ± factor)` and never negative."""
    found = jittered_s(delay, factor, draw=draw)
    assert max(0.0, delay * (1 - factor)) <= found <= delay * (1 + factor)


@given(delays, st.floats(0.01, 2, allow_nan=False), draws, draws)
def test_jitter_grows_with_the_draw(delay: float, factor: float, one: float, other: float) -> None:
    """A larger draw never gives a shorter wait, so that the whole range is reached."""
    low, high = sorted((one, other))
    assert jittered_s(delay, factor, draw=low) <= jittered_s(delay, factor, draw=high)


def test_no_jitter_changes_nothing() -> None:
    """Without a factor the delay is exact."""
    assert jittered_s(3.0, None, draw=0.9) == 3.0


@given(st.floats(0, 100, allow_nan=False), st.integers(0, 200))
def test_backoff_doubles(factor: float, retries: int) -> None:
    """Each delay is twice the one before, and there are as many as retries, up to the bound."""
    found = exponential_backoff(factor)(retries)
    assert len(found) == min(retries, MAX_DELAYS)
    assert all(b == 2 * a for a, b in itertools.pairwise(found))


@pytest.mark.parametrize("wrong", ["1s", [1, "2"], {"a": 1}, True])
def test_what_is_no_delay_is_refused(wrong: object) -> None:
    """Neither texts nor mappings."""
    with pytest.raises(TypeError, match="retry_delay_seconds"):
        check_delays(wrong, retries=1)


def test_negative_and_too_many_delays_are_refused() -> None:
    """A delay is not negative, and a list of more than 50 is a mistake."""
    with pytest.raises(ValueError, match="-1"):
        check_delays(-1, retries=1)
    with pytest.raises(ValueError, match="51"):
        check_delays([1.0] * 51, retries=60)
