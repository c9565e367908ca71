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
    from .consumer import Consumer, Item
    from .event import Event, Recorded
    from .feed import Batch
    from .lease import Grant, Lease
    from .log import Appended, EventLog
    from .objects import ObjectInfo, Objects
    from .publisher import Publisher
    from .run_logs import LogLine, RunLogs
    from .secret import LateValues, Redactor, SecretStore, SecretText, secret_key
    from .session import Session, current_session, use_session
    from .streams import BUCKETS, BrokerInfo
    from .timers import Timers
    from .work_queue import WorkConsumer, WorkItem, WorkQueue

_WHERE = {
    "BrokerAddress": "address",
    "locate_broker": "address",
    "EmbeddedBroker": "broker",
    "Bucket": "bucket",
    "Entry": "bucket",
    "Bus": "bus",
    "Consumer": "consumer",
    "Item": "consumer",
    "Event": "event",
    "Recorded": "event",
    "Batch": "feed",
    "Grant": "lease",
    "Lease": "lease",
    "Appended": "log",
    "EventLog": "log",
    "ObjectInfo": "objects",
    "Objects": "objects",
    "Publisher": "publisher",
    "LogLine": "run_logs",
    "RunLogs": "run_logs",
    "LateValues": "secret",
    "Redactor": "secret",
    "SecretStore": "secret",
    "SecretText": "secret",
    "secret_key": "secret",
    "Session": "session",
    "current_session": "session",
    "use_session": "session",
    "BUCKETS": "streams",
    "BrokerInfo": "streams",
    "Timers": "timers",
    "WorkConsumer": "work_queue",
    "WorkItem": "work_queue",
    "WorkQueue": "work_queue",
}

__all__ = [
    "Appended", "BUCKETS", "Batch", "BrokerAddress", "BrokerInfo", "Bucket", "Bus", "Consumer",
    "EmbeddedBroker", "Entry", "Event", "EventLog", "Grant", "Item", "LateValues", "Lease", "LogLine",
    "ObjectInfo", "Objects", "Publisher", "Recorded", "Redactor", "RunLogs", "SecretStore", "SecretText",
    "Session", "Timers", "WorkConsumer", "WorkItem", "WorkQueue", "current_session", "locate_broker",
    "secret_key", "use_session",
]  # fmt: skip


def __getattr__(name: str) -> object:
    module = _WHERE.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value
