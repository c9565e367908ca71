"""How the code of a run executes, which its flow says: in the worker's event loop, or in a process."""

from __future__ import annotations

__all__ = ["LOOP", "PROCESS", "UNKNOWN", "Lane"]

Lane = str
"""How a run executes: ``LOOP`` in the worker's event loop, ``PROCESS`` in a process, ``UNKNOWN`` until seen once."""

LOOP: Lane = "loop"
PROCESS: Lane = "process"
UNKNOWN: Lane = "unknown"
