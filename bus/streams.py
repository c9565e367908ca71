"""The streams and buckets Hark needs on a broker: what they should be, and making it so.

What they should be is pure (``stream_specs``, ``bucket_spec``, ``changes``); ``reconcile`` asks the broker.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import anyio

from ..config import BusConfig
from ..errors import BusUnavailable, DefinitionError
from ..vocabulary import JsonObject
from .connection import ApiError, Connection
from .subject import LOGS_STREAM, REQUESTS_STREAM, STREAM, WORK_STREAM

__all__ = [
    "BUCKETS", "BUCKET_PREFIX", "OBJECTS_STREAM", "BrokerInfo", "Features", "features_of", "reconcile",
    "BORN", "all_specs", "born_at", "bucket_spec",
]  # fmt: skip

log = logging.getLogger(__name__)

BUCKETS: Final = (
    "deployments", "schedules", "automations", "webhooks", "channels", "pools", "limits", "variables", "secrets",
    "keys", "blocks", "silences", "notifications", "checkpoints", "leases", "outbox",
    "deliveries", "backfills", "cache", "approvals", "sources", "sinks",
)  # fmt: skip
BUCKET_PREFIX: Final = "hark_"
"""Before the name of every bucket, so that Hark can share a broker with others."""
OBJECTS_BUCKET: Final = "hark_objects"
OBJECTS_STREAM: Final = f"OBJ_{OBJECTS_BUCKET}"

BORN = "hark.created"
"""In the metadata of a restored stream: when the one that was backed up had been made."""

Spec = dict[str, Any]

_NS = 1_000_000_000
MARKER_TTL_S = 24 * 3600
"""For how long the broker remembers that a key was deleted or expired; who was cut off for longer does not hear of it."""


@dataclass(frozen=True, slots=True)
class Features:
    """What this broker can do that older ones cannot."""

    message_ttl: bool
    schedules: bool
    fast_ingest: bool


@dataclass(frozen=True, slots=True)
class BrokerInfo:
    """The broker behind a bus.

    Attributes:
        url: without credentials.
        fast_ingest: events are published in batches; without it, one acknowledgement each (2 to 4 times slower).
        schedules: far timers live in the broker; without it they live in the memory of the scheduler's process.
        message_ttl: single keys expire by themselves; without it, by the reader's clock.
        losses: one sentence for each of these that is missing; empty on a current broker.
    """

    url: str
    version: str
    max_payload: int
    fast_ingest: bool
    schedules: bool
    message_ttl: bool
    losses: tuple[str, ...] = ()


def born_at(info: Mapping[str, Any]) -> str:
    """Return when a stream was first made, in another place perhaps, of what the broker says of it."""
    metadata = info["config"].get("metadata") or {}
    return str(metadata.get(BORN) or info["created"])


def features_of(version: tuple[int, int, int], config: BusConfig) -> Features:
    """Return what a broker of ``version`` can do, less what ``config`` switches off.

    Source: release notes of nats-server: per-message TTL in 2.11, scheduled messages in 2.12, batched
    (fast-ingest) publishing in 2.14.
    """
    return Features(
        message_ttl=version >= (2, 11, 0),
        schedules=config.schedules and version >= (2, 12, 0),
        fast_ingest=config.fast_ingest and version >= (2, 14, 0),
    )


def losses_of(features: Features) -> tuple[str, ...]:
    """Return what is slower or coarser without the missing features, one sentence each."""
    lost = []
    if not features.fast_ingest:
        lost.append("no fast ingest: events are acknowledged one by one, at about a quarter of the speed")
    if not features.schedules:
        lost.append("no scheduled messages: far timers are kept in memory and read again after a restart")
    if not features.message_ttl:
        lost.append(
            "no message TTL: expired leases and keys stay until somebody looks, and large results stay for good"
        )
    return tuple(lost)


def stream_specs(config: BusConfig, features: Features) -> list[Spec]:
    """Return the configurations of the streams: events, lines of runs, work, requests."""
    day_ns = 86_400 * _NS
    common: Spec = {
        "storage": "file",
        "num_replicas": config.replicas,
        "discard": "old",
        "max_consumers": -1,
        "max_msgs": -1,
        "compression": "none",
        "allow_direct": True,
    }
    events: Spec = common | {
        "name": STREAM,
        "description": "Hark: every event, in one order",
        "subjects": ["hark.ev.>", "hark.timer.>"],
        "retention": "limits",
        "max_bytes": config.max_bytes,
        "max_age": int(config.max_age_days * day_ns),
        "duplicate_window": int(config.dedup_window_s * _NS),
    }
    if features.message_ttl:
        events["allow_msg_ttl"] = True
    if features.schedules:
        events["allow_msg_schedules"] = True
    if features.fast_ingest:
        events["allow_batched"] = True
    logs: Spec = common | {
        "name": LOGS_STREAM,
        "description": "Hark: log lines of runs",
        "subjects": ["hark.log.>"],
        "retention": "limits",
        "max_bytes": config.logs_max_bytes,
        "max_age": int(config.logs_max_age_days * day_ns),
        "duplicate_window": int(config.dedup_window_s * _NS),
    }
    if features.fast_ingest:
        logs["allow_batched"] = True
    work: Spec = common | {
        "name": WORK_STREAM,
        "description": "Hark: runs waiting for a worker",
        "subjects": ["hark.work.>"],
        "retention": "workqueue",
        # Work is never forgotten to make room: it is refused, and pushed again later.
        "discard": "new",
        "max_bytes": config.work_max_bytes,
        "max_age": 0,
        "duplicate_window": int(config.dedup_window_s * _NS),
    }
    requests: Spec = common | {
        "name": REQUESTS_STREAM,
        "description": "Hark: requests that came in, the newest of each kind",
        "subjects": ["hark.req.>"],
        "retention": "limits",
        "max_msgs_per_subject": config.requests_kept,
        "max_bytes": config.requests_max_bytes,
        "max_age": int(config.requests_max_age_s * _NS),
        "duplicate_window": int(min(config.dedup_window_s, config.requests_max_age_s) * _NS),
    }
    return [events, logs, work, requests]


def bucket_spec(name: str, config: BusConfig, features: Features) -> Spec:
    """Return the configuration of the stream behind a bucket: the layout of NATS KV, one value per key."""
    bucket = f"{BUCKET_PREFIX}{name}"
    spec: Spec = {
        "name": f"KV_{bucket}",
        "subjects": [f"$KV.{bucket}.>"],
        "retention": "limits",
        "storage": "file",
        "num_replicas": config.replicas,
        # A bucket never forgets a value to make room: it refuses new ones.
        "discard": "new",
        "max_msgs_per_subject": 1,
        "max_consumers": -1,
        # Delivery ids come from outside, as many as senders please; the broker holds about 220 bytes for each.
        "max_msgs": 1_000_000 if name == "deliveries" else -1,
        "max_bytes": -1 if name == "deliveries" else config.buckets_max_bytes,
        "max_age": 0,
        "duplicate_window": int(min(config.dedup_window_s, 120.0) * _NS),
        "allow_rollup_hdrs": True,
        "deny_delete": True,
        "allow_direct": True,
        "compression": "none",
    }
    if features.message_ttl:
        spec["allow_msg_ttl"] = True
        spec["subject_delete_marker_ttl"] = MARKER_TTL_S * _NS
    return spec


def objects_spec(config: BusConfig, features: Features) -> Spec:
    """Return the configuration of the stream behind the object store: the layout of NATS object stores.

    Objects leave with the events that name them, except those put to be kept. A broker that cannot tell the two apart
    keeps all until the store is full.
    """
    spec: Spec = {
        "name": OBJECTS_STREAM,
        "subjects": [f"$O.{OBJECTS_BUCKET}.C.>", f"$O.{OBJECTS_BUCKET}.M.>"],
        "retention": "limits",
        "storage": "file",
        "num_replicas": config.replicas,
        "discard": "new",
        "max_consumers": -1,
        "max_msgs": -1,
        "max_bytes": config.objects_max_bytes,
        "max_age": int(config.max_age_days * 86_400 * _NS) if features.message_ttl else 0,
        "allow_rollup_hdrs": True,
        "allow_direct": True,
        "compression": "none",
    }
    if features.message_ttl:
        spec["allow_msg_ttl"] = True
    return spec


def all_specs(config: BusConfig, features: Features) -> list[Spec]:
    """Return every stream there should be: streams, buckets, objects."""
    buckets = [bucket_spec(name, config, features) for name in BUCKETS]
    return [*stream_specs(config, features), *buckets, objects_spec(config, features)]


def changes(wanted: Mapping[str, Any], found: Mapping[str, Any], *, shrink_replicas: bool) -> Spec:
    """Return the fields of ``found`` that have to change to be as ``wanted``, with their new values.

    A field the broker leaves out of its answer stands for its zero. Copies are taken away only on request: the
    default of one copy must not undo what an operator set up.
    """
    out: Spec = {}
    for name, value in wanted.items():
        have = found.get(name)
        if name in ("max_bytes", "max_msgs", "max_consumers") and have is None:
            have = -1
        if have == value or (not have and not value):
            continue
        if name == "num_replicas" and isinstance(have, int) and value < have and not shrink_replicas:
            continue
        out[name] = value
    return out


# --- doing --------------------------------------------------------------------------------------------

_IN_USE = 10058  # stream name already in use with a different configuration
_NOT_FOUND = 10059
_NO_ROOM = (10023, 10047, 10028, 10002)  # insufficient resources, storage, memory; account limits
_NO_REPLICAS = (10074, 10005)  # replicas > 1 without a cluster; no suitable peers
_OVERLAP = 10065


async def reconcile(
    connection: Connection, config: BusConfig, features: Features, *, manage: bool = True
) -> None:
    """Create what is missing and, with ``manage``, bring what differs to ``config``. All at once, so it is quick.

    Raises:
        DefinitionError: what is there cannot be changed into what is asked for; the message says which field.
        BusUnavailable: the broker has no JetStream, or no leader within ``connect_timeout_s``.
    """
    shrink = "replicas" in config.model_fields_set
    first: list[Exception] = []

    async def one(spec: Spec) -> None:
        try:
            await _ensure(connection, spec, manage=manage, shrink_replicas=shrink)
        except (DefinitionError, BusUnavailable) as exc:
            first.append(exc)

    async with anyio.create_task_group() as tg:
        for spec in all_specs(config, features):
            tg.start_soon(one, spec)
    if first:
        raise first[0]


async def _ensure(connection: Connection, spec: Spec, *, manage: bool, shrink_replicas: bool) -> None:
    """Create or change one stream; asks again while a cluster has no leader for it yet."""
    wait_s = connection.config.connect_timeout_s
    name = spec["name"]
    try:
        # Creating what exists just so is no error: at a usual start this is the only request per stream.
        await connection.api(f"STREAM.CREATE.{name}", spec, timeout_s=wait_s)
        return
    except ApiError as exc:
        if exc.err_code != _IN_USE:
            raise _explain(exc, spec) from exc
    if not manage:
        return
    found: JsonObject = {}
    changed: Spec = {}
    try:
        config = (await connection.api(f"STREAM.INFO.{name}", timeout_s=wait_s))["config"]
        assert isinstance(config, dict)
        found = config
        changed = changes(spec, found, shrink_replicas=shrink_replicas)
        if not changed:
            return
        await connection.api(f"STREAM.UPDATE.{name}", {**found, **changed}, timeout_s=wait_s)
    except ApiError as exc:
        if exc.err_code == _NOT_FOUND:
            raise BusUnavailable(f"stream {name} is being removed by somebody else") from exc
        raise _explain(exc, spec, found, changed) from exc
    log.info("bus.stream_changed", extra={"stream": name, "fields": sorted(changed)})


def _explain(
    exc: ApiError,
    spec: Spec,
    found: Mapping[str, Any] | None = None,
    changed: Mapping[str, Any] | None = None,
) -> DefinitionError:
    """Return the error that says what about a stream cannot be as asked, and what to do."""
    name = spec["name"]
    hint = ""
    if exc.err_code in _NO_ROOM:
        hint = (
            "give JetStream more room, or set HARK_BUS__MAX_BYTES, HARK_BUS__LOGS_MAX_BYTES, HARK_BUS__OBJECTS_MAX_BYTES "
            "or HARK_BUS__BUCKETS_MAX_BYTES lower"
        )
    elif exc.err_code in _NO_REPLICAS:
        hint = (
            f"{spec['num_replicas']} copies need a cluster of as many servers; set HARK_BUS__REPLICAS lower"
        )
    elif exc.err_code == _OVERLAP:
        hint = f"another stream already takes {', '.join(spec['subjects'])}; remove it or use another account"
    elif changed and found is not None:
        hint = (
            f"remove the stream by hand (`nats stream rm {name}`; its messages are lost), or undo the setting"
        )
    detail = ""
    if changed and found is not None:
        shown = [f"{k}: {found.get(k)!r} -> {v!r}" for k, v in sorted(changed.items())]
        detail = f" ({', '.join(shown)})"
    return DefinitionError(
        f"stream {name} cannot be set up as configured{detail}: {exc.description} (error {exc.err_code})",
        hint=hint,
    )
