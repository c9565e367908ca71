"""Which runs may start now: the dispatcher's decisions, as a pure fold of the log.

``Dispatch`` is told facts (transitions of runs, definitions, workers) and asked, with the time passed in, what follows
(``decide``). It reads no clock and does nothing itself; ``dispatcher.py`` carries the decisions out. A decision is
made once: what it did to the picture (a place given away, a run told that it waits) is noted at once, and the log
confirms it later.

A *place* is held by a run from the decision to start it until it ends or is suspended, and counts against the pool,
the queue, the deployment's limit and the workers' capacity. A *stint* is one stay in SCHEDULED: it begins at sequence
``since``, and late notices and waits do not end it.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from ...vocabulary import FlowRunId, JsonObject, JsonValue, StateType
from ..code.lane import LOOP, PROCESS, UNKNOWN, Lane
from ..pausing.pause import PauseSpec
from ..runs.hook_log import is_from_outside
from ..runs.run import FlowRun
from .decision import Await, Cancel, Decision, Drop, Expire, Finish, Late, Start
from .deployment import ConcurrencySpec, Deployment
from .known_run import KnownRun
from .pool import Pool
from .waiting import LineKey, Place, Row, RowKey, Waiting

__all__ = ["LATE_AFTER_S", "Dispatch"]

LATE_AFTER_S = 15.0
"""A run that has not started this long after it was due is late (as in Prefect)."""

S = StateType
# FAILED where another than its process wrote it: a process that lives may have a subflow that still goes on.
_PASSED_ON = (S.CANCELLING, S.CANCELLED, S.CRASHED, S.FAILED)
_LATE_AFTER_US = int(LATE_AFTER_S * 1_000_000)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FORMAT = 2
"""Of the checkpoint; one with another number is not read, and the log is folded from its beginning."""


class Dispatch:
    """The fold. Mutable, single-threaded, deterministic: the same facts give the same decisions."""

    def __init__(self) -> None:
        self.seq = 0
        """The log sequence up to which transitions have been folded."""
        self._runs: dict[FlowRunId, KnownRun] = {}
        self._children: dict[FlowRunId, set[FlowRunId]] = defaultdict(set)
        self._ended: dict[FlowRunId, S] = {}
        self._lanes: dict[str, Lane] = {}
        self._deployments: dict[str, Deployment] = {}
        self._pools: dict[str, Pool] = {}
        self._workers: dict[str, tuple[str, Mapping[Lane, int]]] = {}
        self._capacity: Counter[tuple[str, Lane]] = Counter()
        self._held: Counter[tuple[str, ...]] = Counter()
        self._holders: dict[tuple[str, ...], set[FlowRunId]] = defaultdict(set)
        self._waiting = Waiting()
        self._timers: list[tuple[int, int, FlowRunId]] = []
        self._late: list[tuple[int, int, FlowRunId]] = []
        self._pauses: list[tuple[int, int, FlowRunId]] = []
        self._dirty: set[str] = set()
        self._orders: list[Decision] = []
        self._late_paused: set[FlowRunId] = set()
        self._recheck_late = False

    # --- facts ---------------------------------------------------------------------------------------

    def observe(self, run: FlowRun) -> None:
        """Fold one transition. Repeats and old ones change nothing."""
        self.seq = max(self.seq, run.seq)
        known = self._runs.get(run.id)
        if known is not None and run.seq <= known.seq:
            return
        if run.is_final:
            if known is not None:
                self._forget(known)
            if run.state_type is not S.FAILED or is_from_outside(run):
                self._parent_moved(run.id, run.state_type)
            return
        self._ended.pop(run.id, None)
        is_new = known is None
        if known is None:
            known = self._remember(run)
        self._learn(known, run)
        due_us = _us(run.scheduled_at) if run.scheduled_at else 0
        new_stint = run.state_type is S.SCHEDULED and (
            known.type is not S.SCHEDULED or due_us != known.due_us
        )
        if new_stint or known.since == 0:
            known.since, known.late, known.late_said = run.seq, False, False
            known.granted = known.leaving = False
            known.at_once = run.is_due_at_once
        if known.type is S.SCHEDULED and run.state_type is not S.SCHEDULED:
            known.leaving = False
        known.type, known.name, known.attempt = run.state_type, run.state_name, run.attempt
        known.in_process = run.waits_in_process
        known.seq, known.due_us = run.seq, due_us
        known.late = known.late or run.state_name == "Late"
        if known.type is not S.SCHEDULED:
            self._waiting.remove(run.id)
            known.granted = False
        self._settle_place(known)
        if known.type is S.SCHEDULED and known.since == run.seq:
            self._set_timer(known)
        expires_at = PauseSpec.of(run).expires_at if known.type is S.PAUSED else None
        known.expires_us = _us(expires_at) if expires_at and not run.state_details.get("in_process") else 0
        if known.expires_us:
            heapq.heappush(self._pauses, (known.expires_us, known.seq, known.id))
        if known.type is S.CANCELLING:
            self._parent_moved(run.id, known.type)
        if is_new and known.parent:
            self._follow_parent(known)

    def set_deployment(self, name: str, deployment: Deployment | None) -> None:
        """Note a deployment's definition; None when it is gone."""
        if deployment is None:
            self._deployments.pop(name, None)
        else:
            self._deployments[name] = deployment
        self._waiting.unpark_deployment(name)
        for code in self._waiting.codes(name):
            self._waiting.learn(code, self._lane_of(name, code))
        self._dirty.update(self._waiting.pools())
        self._recheck_late = True

    def set_pool(self, name: str, pool: Pool | None) -> None:
        """Note a pool's definition; None when it is gone (then it has no limits)."""
        self._pools.pop(name, None)
        if pool is not None:
            self._pools[name] = pool
        self._dirty.add(name)
        self._recheck_late = True

    def set_worker(
        self, worker_id: str, pool: str | None, capacity: Mapping[Lane, int] | None = None
    ) -> None:
        """Note what a worker can hold at once in each lane; ``pool`` None when it is gone."""
        before = self._workers.pop(worker_id, None)
        if before is not None:
            for lane, size in before[1].items():
                self._capacity[before[0], lane] -= size
            self._dirty.add(before[0])
        if pool is not None:
            sizes = dict(capacity or {})
            self._workers[worker_id] = (pool, sizes)
            for lane, size in sizes.items():
                self._capacity[pool, lane] += size
            self._dirty.add(pool)

    def plain_calls(self) -> list[FlowRunId]:
        """Return the runs that no worker and no other run began: their processes called them."""
        return [run.id for run in self._runs.values() if run.pool is None and run.parent is None]

    def may_hold(self, run_id: FlowRunId) -> bool:
        """Return whether a run may have a place, which others may wait for."""
        known = self._runs.get(run_id)
        return known is not None and known.pool is not None

    def is_going(self, run_id: FlowRunId) -> bool:
        return run_id in self._runs

    def knows_deployment(self, name: str) -> bool:
        return name in self._deployments

    def knows_pool(self, name: str) -> bool:
        return name in self._pools

    def is_granted(self, run_id: FlowRunId, since: int) -> bool:
        """Return whether a run has been given a place in this stint and is not yet seen to be taken up."""
        known = self._runs.get(run_id)
        return known is not None and known.granted and known.since == since

    def restore_grants(self, grants: Mapping[str, int]) -> None:
        """Take over places that an earlier leader gave away and whose runs nobody has taken up yet.

        They are started again under the same message id, and nothing else may have their places.
        """
        for run_id, since in grants.items():
            known = self._runs.get(FlowRunId(run_id))
            if known is not None and known.pool and known.type is S.SCHEDULED and known.since == since:
                self._waiting.remove(known.id)
                self._orders.append(self._grant(known))

    # --- questions -----------------------------------------------------------------------------------

    @property
    def grants(self) -> dict[str, int]:
        """Runs that were given a place under a limit and are not yet seen to be taken up: id -> ``since``."""
        return {
            run_id: self._runs[run_id].since
            for holders in self._holders.values()
            for run_id in holders
            if self._runs[run_id].granted and self._is_limited(self._runs[run_id])
        }

    @property
    def waiting(self) -> int:
        """How many due runs wait for a place."""
        return len(self._waiting)

    @property
    def active(self) -> int:
        """How many runs hold a place."""
        return sum(1 for run in self._runs.values() if run.holds)

    def held(self, *key: str) -> int:
        """Return how many places are taken under a limit, such as ``held("pool", "default")``."""
        return self._held[key]

    def next_due(self) -> datetime | None:
        """Return when ``decide`` has something to do next if nothing happens before; None if nothing has."""
        firsts = []
        for heap in (self._timers, self._late):
            while heap and not self._timer_counts(heap[0]):
                heapq.heappop(heap)
            if heap:
                firsts.append(heap[0][0])
        while self._pauses and not self._pause_counts(self._pauses[0]):
            heapq.heappop(self._pauses)
        if self._pauses:
            firsts.append(self._pauses[0][0])
        return _EPOCH + timedelta(microseconds=min(firsts)) if firsts else None

    def decide(self, now: datetime) -> list[Decision]:
        """Return what follows from the facts at ``now``, in the order in which it should be done."""
        now_us = _us(now)
        out, self._orders = self._orders, []
        while self._timers and self._timers[0][0] <= now_us:
            timer = heapq.heappop(self._timers)
            if self._timer_counts(timer):
                self._enqueue(self._runs[timer[2]])
        for pool in sorted(self._dirty):
            out.extend(self._serve(pool))
        self._dirty.clear()
        if self._recheck_late:
            self._rearm_late(now_us)
        while self._late and self._late[0][0] <= now_us:
            timer = heapq.heappop(self._late)
            if not self._timer_counts(timer):
                continue
            run = self._runs[timer[2]]
            if self._is_paused(run):
                self._late_paused.add(run.id)
            elif not (run.late or run.late_said or run.leaving or run.name == "AwaitingConcurrencySlot"):
                # Who waits for a limit has said so already.
                run.late_said = True
                out.append(Late(run.id, run.since))
        while self._pauses and self._pauses[0][0] <= now_us:
            pause = heapq.heappop(self._pauses)
            if self._pause_counts(pause):
                self._runs[pause[2]].expires_us = 0
                out.append(Expire(pause[2], pause[1]))
        return out

    # --- choosing ------------------------------------------------------------------------------------

    def _serve(self, pool: str) -> list[Decision]:
        out: list[Decision] = []
        spec = self._pools.get(pool)
        if spec is not None and spec.paused:
            return out
        while True:
            best: tuple[tuple[int, Place], Row] | None = None
            pool_full = _full(self._held["pool", pool], spec.concurrency if spec else None)
            for line in self._waiting.lines(pool):
                queue = spec.queue(line.queue) if spec else None
                if queue is not None and queue.paused:
                    continue
                if pool_full or _full(
                    self._held["queue", pool, line.queue], queue.concurrency if queue else None
                ):
                    what = f"pool {pool!r}" if pool_full else f"queue {line.queue!r} of pool {pool!r}"
                    out.extend(
                        Await(place.run_id, place.since, f"{what} is full")
                        for place in self._waiting.tell_line(line)
                    )
                    continue
                if not self._has_capacity(line):
                    continue
                head = self._waiting.head(line)
                if head is None:
                    continue
                order = (queue.priority if queue else 1, head[0])
                if best is None or order < best[0]:
                    best = order, head[1]
            if best is None:
                return out
            self._serve_row(best[1], out)

    def _serve_row(self, row: Row, out: list[Decision]) -> None:
        """Start the first run of a row, or set the row aside, or end runs that lose a conflict."""
        deployment = self._deployments.get(row.key.deployment)
        if deployment is not None and deployment.paused:
            self._waiting.park(row, ("paused", row.key.deployment))
            return
        if row.line.lane == UNKNOWN and self._held["probe", row.key.code] >= 1:
            # Where it executes is learned from its first run; until then, one at a time.
            self._waiting.park(row, ("probe", row.key.code))
            return
        spec = deployment.concurrency if deployment else None
        if spec is not None:
            limit = ("limit", row.key.deployment, row.key.key)
            if spec.on_conflict == "cancel-running" and not self._make_room(row, spec, limit, out):
                return
            if self._held[limit] >= spec.limit:
                first = self._runs[row.places[0].run_id]
                if spec.on_conflict == "skip" and first.attempt == 0:
                    self._drop(first, f"skipped: {_limit_text(row, spec)} is full", out)
                    return
                self._waiting.park(row, limit)
                out.extend(
                    Await(place.run_id, place.since, f"{_limit_text(row, spec)} is full")
                    for place in self._waiting.tell(row)
                )
                return
        out.append(self._grant(self._runs[self._waiting.take(row).run_id]))

    def _make_room(
        self, row: Row, spec: ConcurrencySpec, limit: tuple[str, ...], out: list[Decision]
    ) -> bool:
        """Cancel all but the newest ``limit`` runs of a key; return whether the first of the row is left."""
        running = [self._runs[run_id] for run_id in self._holders[limit]]
        waiting = [self._runs[place.run_id] for place in self._waiting.members(row)]
        everyone = sorted([*running, *waiting], key=lambda run: run.born)
        first = waiting[0]
        for victim in everyone[: -spec.limit]:
            newer = everyone[-1].id
            why = f"superseded by run {newer}: {_limit_text(row, spec)} is full"
            if victim.id in self._waiting:
                self._drop(victim, why, out)
            elif not victim.leaving and victim.type is not S.CANCELLING:
                victim.leaving = True
                out.append(Cancel(victim.id, why))
        return not first.leaving

    def _drop(self, run: KnownRun, why: str, out: list[Decision]) -> None:
        run.leaving = True
        self._waiting.remove(run.id)
        out.append(Drop(run.id, run.since, why))

    def _grant(self, run: KnownRun) -> Start:
        run.granted = True
        run.lane = self._lane_of(run.deployment, run.code)
        self._settle_place(run)
        return Start(
            run.id, run.attempt, run.since, run.pool or "", run.queue, run.lane, self._is_limited(run)
        )

    def _has_capacity(self, line: LineKey) -> bool:
        if line.lane == UNKNOWN:
            return any(self._capacity[line.pool, lane] > 0 for lane in (LOOP, PROCESS))
        # A run whose lane is not known yet will turn out to be in one of the two; it is counted when it is.
        return self._held["lane", line.pool, line.lane] < self._capacity[line.pool, line.lane]

    def _is_limited(self, run: KnownRun) -> bool:
        deployment, pool = self._deployments.get(run.deployment), self._pools.get(run.pool or "")
        return bool(
            (deployment and deployment.concurrency)
            or (pool and (pool.concurrency is not None or pool.queue(run.queue).concurrency is not None))
        )

    def _lane_of(self, deployment: str, code: str) -> Lane:
        spec = self._deployments.get(deployment)
        if spec is not None and spec.executor == "process":
            return PROCESS
        return self._lanes.get(code, UNKNOWN)

    def _is_paused(self, run: KnownRun) -> bool:
        deployment, pool = self._deployments.get(run.deployment), self._pools.get(run.pool or "")
        return bool(
            (deployment and deployment.paused) or (pool and (pool.paused or pool.queue(run.queue).paused))
        )

    # --- keeping the picture --------------------------------------------------------------------------

    def _remember(self, run: FlowRun) -> KnownRun:
        code = f"{run.deployment or ''}|{run.entrypoint or ''}"
        known = KnownRun(
            id=run.id, pool=run.pool, queue=run.queue, deployment=run.deployment or "", key=run.concurrency_key or "",
            code=code, parent=run.parent, type=run.state_type, name=run.state_name, attempt=run.attempt, due_us=0,
            born=run.seq, since=0, seq=0, lane=UNKNOWN,
        )  # fmt: skip
        self._runs[run.id] = known
        if run.parent:
            self._children[run.parent].add(run.id)
        return known

    def _forget(self, known: KnownRun) -> None:
        del self._runs[known.id]
        self._waiting.remove(known.id)
        self._release(known)
        if known.parent and (siblings := self._children.get(known.parent)) is not None:
            siblings.discard(known.id)
            if not siblings:
                del self._children[known.parent]
                self._ended.pop(known.parent, None)

    def _learn(self, known: KnownRun, run: FlowRun) -> None:
        lane = run.state_details.get("lane")
        if lane not in (LOOP, PROCESS) or not isinstance(lane, str):
            return
        if known.lane != lane:
            known.lane = lane
            if known.holds:
                self._release(known)  # taken again below, under the lane it really is in
        if self._lanes.get(known.code) != lane:
            self._lanes[known.code] = lane
            self._waiting.learn(known.code, lane)
            self._waiting.unpark(("probe", known.code))
            if known.pool:
                self._dirty.add(known.pool)

    def _settle_place(self, known: KnownRun) -> None:
        """Take or give back the run's place, as its state says."""
        if known.pool is None:
            return
        suspended = known.type is S.PAUSED and known.name == "Suspended"
        wants = known.granted or known.in_process if known.type is S.SCHEDULED else not suspended
        if wants and not known.holds:
            keys: list[tuple[str, ...]] = [
                ("pool", known.pool), ("queue", known.pool, known.queue),
                ("probe", known.code) if known.lane == UNKNOWN else ("lane", known.pool, known.lane),
            ]  # fmt: skip
            # Counted whether or not a limit is set now: one may be set while it runs.
            keys.append(("limit", known.deployment, known.key))
            known.holds = tuple(keys)
            for key in keys:
                self._held[key] += 1
            self._holders[keys[-1]].add(known.id)
        elif not wants and known.holds:
            self._release(known)

    def _release(self, known: KnownRun) -> None:
        if not known.holds or known.pool is None:
            return
        for key in known.holds:
            self._held[key] -= 1
            if self._held[key] <= 0:
                del self._held[key]
            if key[0] in ("limit", "probe"):
                self._waiting.unpark(key)
        holders = self._holders[known.holds[-1]]
        holders.discard(known.id)
        if not holders:
            del self._holders[known.holds[-1]]
        known.holds = ()
        self._dirty.add(known.pool)

    def _set_timer(self, known: KnownRun) -> None:
        if known.pool is None or known.type is not S.SCHEDULED or known.in_process:
            return
        self._waiting.remove(known.id)
        heapq.heappush(self._timers, (0 if known.at_once else known.due_us, known.since, known.id))
        heapq.heappush(self._late, (known.due_us + _LATE_AFTER_US, known.since, known.id))

    def _rearm_late(self, now_us: int) -> None:
        """After a pause, runs that waited it out are late only when they still have not started a while later."""
        self._recheck_late = False
        for run_id in sorted(self._late_paused):
            run = self._runs.get(run_id)
            if run is None or run.type is not S.SCHEDULED:
                self._late_paused.discard(run_id)
            elif not self._is_paused(run):
                self._late_paused.discard(run_id)
                heapq.heappush(self._late, (now_us + _LATE_AFTER_US, run.since, run.id))

    def _timer_counts(self, timer: tuple[int, int, FlowRunId]) -> bool:
        known = self._runs.get(timer[2])
        return known is not None and known.type is S.SCHEDULED and known.since == timer[1]

    def _pause_counts(self, pause: tuple[int, int, FlowRunId]) -> bool:
        known = self._runs.get(pause[2])
        return known is not None and known.seq == pause[1] and known.expires_us == pause[0]

    def _enqueue(self, known: KnownRun) -> None:
        if known.granted or known.leaving or known.pool is None or known.id in self._waiting:
            return
        lane = self._lane_of(known.deployment, known.code)
        key = RowKey(known.pool, known.queue, known.deployment, known.key, known.code)
        place = Place(known.due_us, known.born, known.id, known.since)
        self._waiting.add(place, key, lane, told=known.name == "AwaitingConcurrencySlot")
        self._dirty.add(known.pool)

    # --- children -------------------------------------------------------------------------------------

    def _parent_moved(self, parent: FlowRunId, state: S) -> None:
        """Pass the end of a run, or the wish for it, on to the runs it began."""
        if state not in _PASSED_ON:
            return
        for child in sorted(self._children.get(parent, ())):
            self._pass_on(parent, state, self._runs[child])
        if state is not S.CANCELLING and self._children.get(parent):
            self._ended[parent] = state

    def _follow_parent(self, known: KnownRun) -> None:
        if known.parent is None:
            return
        parent = self._runs.get(known.parent)
        state = self._ended.get(known.parent) or (parent.type if parent else None)
        if state in _PASSED_ON:
            self._pass_on(known.parent, state, known)

    def _pass_on(self, parent: FlowRunId, state: S, child: KnownRun) -> None:
        if child.pool is not None:
            if state in (S.CANCELLING, S.CANCELLED) and child.type is not S.CANCELLING:
                self._orders.append(Cancel(child.id, f"run {parent}, which began it, was cancelled"))
        elif state is not S.CANCELLING:
            # It ran inside its parent's process and ends with it; normally it has said so itself before.
            self._orders.append(Finish(child.id, state, f"run {parent}, in which it ran, has ended"))

    # --- checkpoint ------------------------------------------------------------------------------------

    def dump(self) -> JsonObject:
        """Return what the fold of transitions remembers, as JSON; definitions and workers are not part of it."""
        runs: list[JsonValue] = [run.to_row() for run in self._runs.values()]
        return {
            "format": _FORMAT, "seq": self.seq, "runs": runs, "lanes": dict(self._lanes),
            "ended": {run_id: state.value for run_id, state in self._ended.items()},
        }  # fmt: skip

    @classmethod
    def load(cls, value: JsonObject) -> Dispatch | None:
        """Return the fold as ``dump`` wrote it; None if that was another version of it."""
        if value.get("format") != _FORMAT:
            return None
        self = cls()
        stored: Any = value
        self.seq = int(stored["seq"])
        self._lanes = dict(stored["lanes"])
        self._ended = {FlowRunId(run_id): S(state) for run_id, state in stored["ended"].items()}
        for row in stored["runs"]:
            known = KnownRun.from_row(row)
            if known.expires_us:
                heapq.heappush(self._pauses, (known.expires_us, known.seq, known.id))
            self._runs[known.id] = known
            if known.parent:
                self._children[known.parent].add(known.id)
        for known in self._runs.values():
            self._settle_place(known)
            self._set_timer(known)
            self._follow_parent(known)
        return self


def _full(held: int, limit: int | None) -> bool:
    return limit is not None and held >= limit


def _limit_text(row: Row, spec: ConcurrencySpec) -> str:
    key = f" for {row.key.key!r}" if row.key.key else ""
    return f"the limit of {spec.limit} run{'s' if spec.limit > 1 else ''} of deployment {row.key.deployment!r}{key}"


def _us(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)
