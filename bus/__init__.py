"""Carrying facts: event envelope, subjects, the log, publisher, consumers, buckets, objects, the broker.

The only room that imports nats. Names are loaded on first use, so that who needs an ``Event`` does not pay for the
broker client.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .address import BrokerAddress, locate_broker
    from .broker import EmbeddedBroker
    from .bucket import Bucket, Entry
    from .bus import Bus
    from .event import Event, Recorded
    from .lease import Grant, Lease
    from .objects import ObjectInfo, Objects
    from .secret import LateValues, Redactor, SecretStore, SecretText, secret_key
    from .streams import BUCKETS, BrokerInfo

_WHERE = {
    "BrokerAddress": "address",
    "locate_broker": "address",
    "EmbeddedBroker": "broker",
    "Bucket": "bucket",
    "Entry": "bucket",
    "Bus": "bus",
    "Event": "event",
    "Recorded": "event",
    "Grant": "lease",
    "Lease": "lease",
    "ObjectInfo": "objects",
    "Objects": "objects",
    "LateValues": "secret",
    "Redactor": "secret",
    "SecretStore": "secret",
    "SecretText": "secret",
    "secret_key": "secret",
    "BUCKETS": "streams",
    "BrokerInfo": "streams",
}

__all__ = [
    "BUCKETS", "BrokerAddress", "BrokerInfo", "Bucket", "Bus", "EmbeddedBroker", "Entry", "Event", "Grant",
    "LateValues", "Lease", "ObjectInfo", "Objects", "Recorded", "Redactor", "SecretStore", "SecretText",
    "locate_broker", "secret_key",
]  # fmt: skip


def __getattr__(name: str) -> object:
    module = _WHERE.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value
