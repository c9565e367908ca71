"""Goals of benchmarks: each figure is printed with its goal and whether it was met, and a miss is the exit code."""

from __future__ import annotations

__all__ = ["Goals"]


class Goals:
    """What was reached, goal by goal. ``verdict`` is printed beside a figure; ``code`` is what the process ends with."""

    def __init__(self) -> None:
        self.missed: list[str] = []

    def below(self, what: str, value: float, goal: float, unit: str = "") -> str:
        """Return how a figure that is to be less than its goal did."""
        return self._judge(what, value < goal, f"goal < {goal:,g}{unit}")

    def at_least(self, what: str, value: float, goal: float, unit: str = "") -> str:
        """Return how a figure that is to reach its goal did."""
        return self._judge(what, value >= goal, f"goal {goal:,g}{unit}")

    def _judge(self, what: str, is_met: bool, goal: str) -> str:
        if not is_met:
            self.missed.append(what)
        return f"{goal}: {'met' if is_met else 'MISSED'}"

    @property
    def code(self) -> int:
        """0 when every goal was met; else 1, and the missed ones are printed."""
        if self.missed:
            print(f"missed: {', '.join(self.missed)}")
        return 1 if self.missed else 0
