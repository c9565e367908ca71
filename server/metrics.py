"""Numbers for Prometheus: what runs did, how long they took, how far things are behind."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self

import anyio
import orjson
from anyio import AsyncContextManagerMixin
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest

from ..bus.patience import Patience
from ..bus.subject import FLOW_RUNS
from ..engine.code.lane import LOOP, PROCESS
from ..engine.dispatching.presence import WorkerInfo, live_workers
from ..errors import HarkError
from ..vocabulary import TERMINAL, StateType

if TYPE_CHECKING:
    from ..bus import Bus
    from ..bus.event import Recorded
    from .context import ServerContext

__all__ = ["CONTENT_TYPE_LATEST", "Metrics", "MetricsFeed"]

log = logging.getLogger("hark.metrics")

_MAX_FLOWS = 200
"""Flows that get a label of their own; later ones are counted as "other", so that names cannot fill the memory."""
_BUCKETS_S = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600, 14400)
_STATES = frozenset(StateType)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_GATHER_S = 0.25


class Metrics:
    """The registry of one server, and what is counted as it happens."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self._transitions = Counter(
            "hark_flow_run_transitions",
            "Transitions of flow runs seen by this server",
            ["flow", "state"],
            registry=r,
        )
        self._durations = Histogram(
            "hark_flow_run_duration_seconds", "From first start to end of flow runs", ["flow", "state"],
            buckets=_BUCKETS_S, registry=r,
        )  # fmt: skip
        self._received = Counter("hark_http_events", "Events stored through HTTP", registry=r)
        self._requests = Counter(
            "hark_http_requests", "HTTP requests by status class", ["status"], registry=r
        )
        self._runs = Gauge(
            "hark_flow_runs", "Flow runs in the read model by state type", ["state"], registry=r
        )
        self._task_runs = Gauge("hark_task_runs", "Task runs in the read model", registry=r)
        self._events = Gauge("hark_events", "Events in the read model", registry=r)
        self._log_seq = Gauge("hark_log_sequence", "Last sequence of the event log", registry=r)
        self._lag = Gauge("hark_projector_lag_events", "Events the read model is behind the log", registry=r)
        self._firings = Gauge("hark_automation_firings", "Decisions of rules", ["decision"], registry=r)
        self._actions = Gauge("hark_actions", "Actions of rules by latest outcome", ["state"], registry=r)
        self._dead = Gauge("hark_dead_letters", "Dead letters waiting for a person", registry=r)
        self._notifications = Gauge("hark_notifications", "Messages by outcome", ["outcome"], registry=r)
        self._webhooks = Gauge(
            "hark_webhook_deliveries", "Requests at webhooks by outcome", ["outcome"], registry=r
        )
        self._workers = Gauge("hark_workers", "Workers by latest word", ["state"], registry=r)
        self._places = Gauge(
            "hark_worker_places",
            "Runs that go on at once in the workers that are there",
            ["pool", "runs"],
            registry=r,
        )
        self._held = Gauge(
            "hark_worker_runs", "Runs in a place of a worker, or waiting in its memory without one",
            ["pool", "runs", "state"], registry=r,
        )  # fmt: skip
        self._waiting = Gauge(
            "hark_publisher_waiting_events", "Events waiting for the broker here", registry=r
        )
        self._parts = Gauge("hark_part_up", "Whether a part of this service runs", ["part"], registry=r)
        self._streams = Gauge("hark_event_streams", "Clients following events here", registry=r)
        self.patience = Patience(_GATHER_S)
        """Of who counts the transitions: nobody knows how many there were before they are asked for."""
        self._flows: set[str] = set()
        self._known: dict[tuple[str, str], tuple[Counter, Histogram | None]] = {}

    def received(self, count: int) -> None:
        """Count events that came in over HTTP."""
        self._received.inc(count)

    def answered(self, status: int) -> None:
        """Count a request."""
        self._requests.labels(f"{status // 100}xx").inc()

    def saw(self, recorded: Recorded) -> None:
        """Count a transition of a flow run; an event that does not name its flow and a state is left out."""
        # Three words of it are wanted, each time a run moves: making an event of it would cost three times as much.
        try:
            data = orjson.loads(recorded.raw)["data"]
            flow, state, run = str(data["flow"]["name"]), str(data["state"]["type"]), data["run"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return
        if state not in _STATES or not isinstance(run, dict):
            return
        counter, histogram = self._of(self._flow(flow), state)
        counter.inc()
        if histogram is not None and isinstance(duration := run.get("duration_s"), int | float):
            histogram.observe(duration)

    def _of(self, flow: str, state: str) -> tuple[Counter, Histogram | None]:
        found = self._known.get((flow, state))
        if found is None:
            counter = self._transitions.labels(flow, state)
            found = counter, self._durations.labels(flow, state) if state in TERMINAL else None
            self._known[flow, state] = found
        return found

    def _flow(self, name: str) -> str:
        if name not in self._flows:
            if len(self._flows) >= _MAX_FLOWS:
                return "other"
            self._flows.add(name)
        return name

    async def exposition(self, context: ServerContext) -> bytes:
        """Return everything in OpenMetrics text, the gauges read now."""
        self.patience.hurry()
        self._waiting.set(context.bus.publisher.waiting)
        self._streams.set(context.streams)
        for name, part in context.services.report().items():
            self._parts.labels(name).set(isinstance(part, dict) and part.get("state") == "running")
        try:
            await self._read(context)
        except HarkError as exc:
            # Half an answer says more than none; what is missing is seen as stale.
            log.warning("metrics.incomplete", extra={"error": str(exc)})
        out: bytes = generate_latest(self.registry)  # type: ignore[no-untyped-call]
        return out

    async def _read(self, context: ServerContext) -> None:
        counts = await context.queries.counts(since=_EPOCH)
        for state in StateType:
            self._runs.labels(state.value).set(counts.flow_runs.get(state.value, 0))
        self._task_runs.set(counts.task_runs)
        self._events.set(counts.events)
        self._dead.set(counts.dead_letters)
        self._firings.labels("triggered").set(counts.triggered)
        self._firings.labels("suppressed").set(counts.suppressed)
        for gauge, values in (
            (self._actions, counts.actions), (self._notifications, counts.notifications),
            (self._webhooks, counts.webhooks), (self._workers, counts.workers),
        ):  # fmt: skip
            for label, n in values.items():
                gauge.labels(label).set(n)
        self.saw_workers(await live_workers(context.bus))
        head = await context.bus.log.head()
        self._log_seq.set(head)
        self._lag.set(max(0, head - counts.seq))

    def saw_workers(self, workers: Iterable[tuple[WorkerInfo, object]]) -> None:
        """Note what the workers hold that are there, by pool. Of a pool that has none any more nothing is said."""
        self._places.clear()
        self._held.clear()
        for info, _ in workers:
            for runs, lane in (("async", LOOP), ("sync", PROCESS)):
                places, taken, waiting = info.held_in(lane)
                self._places.labels(info.pool, runs).inc(places)
                self._held.labels(info.pool, runs, "taken").inc(taken)
                self._held.labels(info.pool, runs, "waiting").inc(waiting)


class MetricsFeed(AsyncContextManagerMixin):
    """Follows the transitions of flow runs into the metrics."""

    def __init__(self, bus: Bus, metrics: Metrics) -> None:
        self._bus, self._metrics = bus, metrics

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, None]:
        async with anyio.create_task_group() as tg:
            tg.start_soon(self._follow)
            try:
                yield self
            finally:
                tg.cancel_scope.cancel("metrics closing")

    async def _follow(self) -> None:
        async with self._bus.log.follow([FLOW_RUNS], patience=self._metrics.patience) as batches:
            async for batch in batches:
                for recorded in batch.records:
                    self._metrics.saw(recorded)
