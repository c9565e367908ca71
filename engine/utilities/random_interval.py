"""Random intervals between things that happen at no fixed time: exponentially distributed, and held between bounds.

The mean is what is asked for; how much an interval may differ from it is bounded, so that many processes that wait the same
time do not act together, and none waits for long.
"""

from __future__ import annotations

import math
import random

__all__ = [
    "bounded_poisson_interval", "clamped_poisson_interval", "exponential_cdf", "lower_clamp_multiple", "poisson_interval",
]  # fmt: skip

_LEAST = 1e-10
"""Stands in for 0, of which there is no logarithm."""


def exponential_cdf(x: float, average_interval: float) -> float:
    """Return how likely an interval of this mean is to be at most ``x``, from 0 to 1."""
    return -math.expm1(-x / average_interval)


def poisson_interval(average_interval: float, lower: float = 0, upper: float = 1) -> float:
    """Return a random interval of this mean, out of that part of the distribution, from 0 to 1."""
    share = random.uniform(lower, upper)  # noqa: S311  no secret
    return -math.log(max(1 - share, _LEAST)) * average_interval


def lower_clamp_multiple(k: float) -> float:
    """Return the bound below that leaves as much of the distribution on its side of the median as ``k`` does above.

    Both are multiples of the median: with the survival function 2**-x, those x and k for which 2**-x + 2**-k is 1.
    """
    return -math.log2(-math.expm1(-k * math.log(2))) if k < 50 else 0.0


def clamped_poisson_interval(average_interval: float, clamping_factor: float = 0.3) -> float:
    """Return a random interval of about this mean, and at most ``1 + clamping_factor`` times it.

    Raises:
        ValueError: the factor is not above 0.
    """
    if clamping_factor <= 0:
        raise ValueError(f"clamping_factor must be above 0, got {clamping_factor}")
    if average_interval <= 0:
        return 0.0
    most = 1 + clamping_factor
    lower = exponential_cdf(lower_clamp_multiple(most), 1)
    return poisson_interval(average_interval, lower, exponential_cdf(most, 1))


def bounded_poisson_interval(lower_bound: float, upper_bound: float) -> float:
    """Return a random interval between two bounds, of an exponential distribution whose mean is halfway."""
    mean = (lower_bound + upper_bound) / 2
    return poisson_interval(mean, exponential_cdf(lower_bound, mean), exponential_cdf(upper_bound, mean))
