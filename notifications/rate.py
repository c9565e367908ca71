"""How many messages per time, and how long to wait between tries. Pure: time is passed in."""

from __future__ import annotations

from ..duration import Rate

__all__ = ["TokenBucket", "backoff_s"]


class TokenBucket:
    """At most ``rate.count`` at once, refilled evenly over ``rate.per_s``. Time is monotonic seconds, passed in."""

    __slots__ = ("_at", "_rate", "_tokens")

    def __init__(self, rate: Rate, *, now: float) -> None:
        self._rate, self._tokens, self._at = rate, float(rate.count), now

    @property
    def rate(self) -> Rate:
        return self._rate

    def take(self, *, now: float) -> bool:
        """Take one and return True, or return False when there is none."""
        self._refill(now)
        # The rounding of many small refills must not cost a whole token.
        if self._tokens < 1 - 1e-9:
            return False
        self._tokens = max(0.0, self._tokens - 1)
        return True

    def wait_s(self, *, now: float) -> float:
        """Return how long until there is one, 0 if there is."""
        self._refill(now)
        return max(0.0, 1 - self._tokens) * self._rate.per_s / self._rate.count

    def _refill(self, now: float) -> None:
        gained = max(0.0, now - self._at) * self._rate.count / self._rate.per_s
        self._tokens = min(float(self._rate.count), self._tokens + gained)
        self._at = max(self._at, now)


def backoff_s(
    tries: int, *, base_s: float, jitter: float, asked_s: float | None = None, cap_s: float = 60.0
) -> float:
    """Return how long to wait after ``tries`` tries (from 1): a random share of a ceiling that doubles with each.

    Args:
        jitter: a draw from [0, 1), made by the caller.
        asked_s: what the receiver asked for (``Retry-After``); kept to, up to ``cap_s``.
    Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 ("equal jitter": never less than
        half the ceiling, because a receiver that has just failed is rarely well again at once).
    """
    ceiling: float = min(cap_s, base_s * 2 ** min(max(tries, 1) - 1, 30))
    wait = ceiling / 2 + jitter * ceiling / 2
    return max(wait, min(asked_s, cap_s)) if asked_s is not None else wait
