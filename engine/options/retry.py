"""Whether and when to try again. Pure: the draw of chance is handed in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

__all__ = ["MAX_DELAYS", "RetryDelays", "check_delays", "exponential_backoff", "jittered_s", "retry_delay_s"]

RetryDelays: TypeAlias = "float | Sequence[float] | Callable[[int], Sequence[float]] | None"

MAX_DELAYS = 50
"""More distinct delays than this is a mistake in a formula, not a plan."""


def exponential_backoff(backoff_factor: float) -> Callable[[int], list[float]]:
    """Return a ``retry_delay_seconds`` that doubles: ``factor * 1, 2, 4, …`` seconds."""
    if backoff_factor < 0:
        raise ValueError(f"backoff_factor must be >= 0, got {backoff_factor}")

    def delays(retries: int) -> list[float]:
        return [backoff_factor * 2**n for n in range(min(retries, MAX_DELAYS))]

    return delays


def check_delays(delays: object, *, retries: int) -> float | tuple[float, ...]:
    """Return what was given as ``retry_delay_seconds`` as one number or a tuple of them, in seconds.

    Raises:
        TypeError: neither a number, a sequence of numbers nor a callable giving one.
        ValueError: a negative delay, or more than ``MAX_DELAYS``.
    """
    if callable(delays):
        delays = delays(retries)
    if delays is None:
        return 0.0
    if isinstance(delays, int | float) and not isinstance(delays, bool):
        if delays < 0:
            raise ValueError(f"retry_delay_seconds must be >= 0, got {delays}")
        return float(delays)
    if isinstance(delays, list | tuple):
        if len(delays) > MAX_DELAYS:
            raise ValueError(
                f"Can not configure more than {MAX_DELAYS} retry delays per task; got {len(delays)}"
            )
        if all(isinstance(d, int | float) and not isinstance(d, bool) and d >= 0 for d in delays):
            return tuple(float(d) for d in delays)
    raise TypeError(
        "Invalid `retry_delay_seconds` provided; must be an int, float, list or callable (of the number of retries) "
        f"giving seconds >= 0. Received type {type(delays)}: {delays!r}"
    )


def retry_delay_s(delays: float | tuple[float, ...], *, retry: int) -> float:
    """Return the delay before the given retry (1 for the first), in seconds; the last of a list repeats."""
    if retry < 1:
        raise ValueError(f"retries count from 1, got {retry}")
    if isinstance(delays, float | int):
        return delays
    return delays[min(retry, len(delays)) - 1] if delays else 0.0


def jittered_s(delay_s: float, factor: float | None, *, draw: float) -> float:
    """Return a delay in ``[delay * (1 - factor), delay * (1 + factor)]``, exponentially distributed there.

    Retries of many tasks that failed together then come back as independent arrivals (a Poisson process), cut to
    the stated range; a factor of 1 or more cuts below at 0.

    Args:
        factor: >= 0; 0 or None for no jitter.
        draw: a draw from [0, 1), made by the caller.
    """
    if not factor or delay_s <= 0:
        return delay_s
    # The distribution function of an exponential with mean 1, at both ends of the range.
    low = 1 - math.exp(-max(0.0, 1 - factor))
    high = 1 - math.exp(-(1 + factor))
    picked = -math.log1p(-(low + draw * (high - low))) * delay_s
    return min(max(picked, delay_s * max(0.0, 1 - factor)), delay_s * (1 + factor))
