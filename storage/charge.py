"""What the process that keeps up the read model is told when it is started."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from ..bus import BrokerAddress
from ..config import BusConfig, StorageConfig

__all__ = ["GO", "LOOK", "Charge"]

GO = b"go"
"""Said once nobody else has the file open for writing, with the sequence from which on it is whole: ``go 500``, and a newline."""
LOOK = b"look\n"
"""Said when somebody could not read the file."""


@dataclass(frozen=True, slots=True)
class Charge:
    """What there is to do; ``level``: what is worth logging; ``gives_way_at_once``: see ``precedence``."""

    address: BrokerAddress
    bus: BusConfig
    storage: StorageConfig
    path: Path
    level: int = logging.WARNING
    gives_way_at_once: bool = True
