"""A token bucket: so many per time, with bursts up to that many. Pure; the time is passed in."""

from __future__ import annotations

from dataclasses import dataclass

from ..duration import Rate

__all__ = ["TokenBucket"]


@dataclass(slots=True)
class TokenBucket:
    """Allows ``rate.count`` per ``rate.per_s`` seconds; a full bucket holds ``rate.count``, at least one.

    ``tokens`` is what was left at ``at_s`` (monotonic seconds).
    """

    rate: Rate
    tokens: float
    at_s: float

    @classmethod
    def full(cls, rate: Rate, *, now_s: float) -> TokenBucket:
        """Return a bucket that has not been used."""
        return cls(rate, float(rate.count), now_s)

    def take(self, now_s: float) -> float:
        """Take one and return 0.0; or take none and return the seconds until there will be one."""
        per_token_s = self.rate.per_s / self.rate.count
        self.tokens = min(float(self.rate.count), self.tokens + max(0.0, now_s - self.at_s) / per_token_s)
        self.at_s = now_s
        # A hair below one is one: the sums of many small refills do not come out even.
        if self.tokens >= 1.0 - 1e-9:
            self.tokens -= 1.0
            return 0.0
        return (1.0 - self.tokens) * per_token_s
