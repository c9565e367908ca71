"""The dispatcher's decisions: pure, so tried by the thousand."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hark.engine.dispatching.decision import Await, Cancel, Decision, Drop, Finish, Late, Start
from hark.engine.dispatching.deployment import ConcurrencySpec, Deployment
from hark.engine.dispatching.dispatch import Dispatch
from hark.engine.dispatching.pool import Pool, QueueSpec
from hark.engine.runs.run import FlowRun, RunRequest
from hark.engine.states import (
    AwaitingConcurrencySlot,
    AwaitingRetry,
    Cancelled,
    Cancelling,
    Completed,
    Crashed,
    Pending,
    Retrying,
    Running,
    Scheduled,
    State,
    Suspended,
)
from hark.engine.states import Late as LateState
from hark.vocabulary import FlowRunId
from hypothesis import given, settings
from hypothesis import strategies as st

T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)


class World:
    """A log of transitions, a fold of it, and a clock; what the fold decides is done at once."""

    def __init__(self, *, lane: str = "loop", capacity: int = 1000) -> None:
        self.now = T0
        self.seq = 0
        self.log: list[FlowRun] = []
        self.runs: dict[str, FlowRun] = {}
        self.lane = lane
        self.dispatch = Dispatch()
        self.deployments: dict[str, Deployment] = {}
        self.pools: dict[str, Pool] = {}
        self.capacity = {"loop": capacity, "process": capacity}
        self.pushed: list[Start] = []
        self.dispatch.set_worker("w1", "default", self.capacity)
        self.outcomes: list[Decision] = []

    def deployment(self, name: str, **fields: Any) -> None:
        self.deployments[name] = Deployment(name=name, flow="f.py:f", **fields)
        self.dispatch.set_deployment(name, self.deployments[name])

    def pool(self, **fields: Any) -> None:
        self.pools["default"] = Pool(name="default", **fields)
        self.dispatch.set_pool("default", self.pools["default"])

    def request(self, id: str, deployment: str = "d", *, in_s: float = 0, **fields: Any) -> FlowRun:
        request = RunRequest(
            flow_name="f", id=FlowRunId(id), deployment=deployment, entrypoint="f.py:f",
            **{"pool": "default", "scheduled_at": self.now + timedelta(seconds=in_s), **fields},
        )  # fmt: skip
        return self.append(FlowRun.requested(request, now=self.now))

    def append(self, run: FlowRun) -> FlowRun:
        self.seq += 1
        run = replace(run, seq=self.seq)
        self.runs[run.id] = run
        self.log.append(run)
        self.dispatch.observe(run)
        return run

    def move(self, id: str, state: State, **changes: Any) -> FlowRun:
        return self.append(self.runs[id].moved(state, **changes))

    def claim(self, id: str) -> None:
        run = self.runs[id]
        self.move(id, Pending(details={"lane": self.lane}), attempt=run.attempt + 1)
        self.move(id, Running(details={"lane": self.lane}))

    def step(self, *, by_s: float = 0) -> list[Decision]:
        """Decide, note what was decided in the log as the dispatcher would, and return it."""
        self.now += timedelta(seconds=by_s)
        decisions = self.dispatch.decide(self.now)
        for decision in decisions:
            run = self.runs[decision.run_id]
            scheduled = run.state_type == "SCHEDULED"
            match decision:
                case Start():
                    self.pushed.append(decision)
                case Await(why=why) if scheduled:
                    self.move(run.id, AwaitingConcurrencySlot(message=why))
                case Late() if scheduled:
                    self.move(run.id, LateState())
                case Drop(why=why) if scheduled:
                    self.move(run.id, Cancelled(message=why))
                case Cancel(why=why) if scheduled:
                    self.move(run.id, Cancelled(message=why))
                case Cancel() if not run.is_final and run.state_type != "CANCELLING":
                    self.move(run.id, Cancelling())
                case Finish(state=state) if not run.is_final:
                    self.move(run.id, State(state))
                case _:
                    pass
        return decisions

    def started(self, *, by_s: float = 0) -> list[str]:
        return [d.run_id for d in self.step(by_s=by_s) if isinstance(d, Start)]

    def learned(self) -> World:
        """The lane of deployment ``d`` is known from an earlier run."""
        self.request("first")
        assert self.started() == ["first"]
        self.claim("first")
        self.move("first", Completed())
        self.step()
        return self

    def failover(self, *, checkpoint: bool) -> None:
        """A new leader: from a checkpoint or the whole log, with the grants the old one wrote down."""
        grants = self.dispatch.grants
        fresh = None
        if checkpoint:
            fresh = Dispatch.load(json.loads(json.dumps(self.dispatch.dump())))
        if fresh is None:
            fresh = Dispatch()
            for run in self.log:
                fresh.observe(run)
        for name, deployment in self.deployments.items():
            fresh.set_deployment(name, deployment)
        for name, pool in self.pools.items():
            fresh.set_pool(name, pool)
        fresh.set_worker("w1", "default", self.capacity)
        fresh.restore_grants(grants)
        self.dispatch = fresh


def test_a_due_run_starts_and_an_early_one_waits_for_its_time() -> None:
    """A run starts when it is due, not before, and the fold says when to look again."""
    world = World().learned()
    world.request("now")
    world.request("later", in_s=60)
    assert world.started() == ["now"]
    assert world.dispatch.next_due() is not None
    assert world.started(by_s=59) == []
    assert world.started(by_s=1) == ["later"]


def test_nothing_is_started_where_no_worker_is() -> None:
    """Without a worker a run waits, is called late once, and starts when a worker comes."""
    world = World()
    world.dispatch.set_worker("w1", None)
    world.request("a")
    assert world.step() == []
    assert [type(d) for d in world.step(by_s=15)] == [Late]
    assert world.step(by_s=600) == []
    world.dispatch.set_worker("w2", "default", {"loop": 1})
    assert world.started() == ["a"]


def test_workers_are_given_no_more_than_they_hold() -> None:
    """A lane's capacity bounds what is handed out; a run that ends makes room for one."""
    world = World(capacity=2).learned()
    for i in range(5):
        world.request(f"r{i}")
    assert world.started() == ["r0", "r1"]
    world.claim("r0")
    world.move("r0", Completed())
    assert world.started() == ["r2"]


def test_choosing_costs_the_same_however_many_wait() -> None:
    """Ten thousand runs under a limit, one end and one start at a time: seconds, not minutes."""
    world = World().learned()
    world.deployment("d", concurrency=ConcurrencySpec(limit=50, key="k"))
    count = 10_000
    for n in range(count):
        world.request(f"r{n:05}", concurrency_key=f"k{n % 20}")
    world.log.clear()
    began = time.process_time()
    decisions = world.dispatch.decide(world.now)
    done = 0
    while done < count:
        starts = [decision.run_id for decision in decisions if isinstance(decision, Start)]
        assert starts
        for run_id in starts:
            world.move(run_id, Completed())
            done += 1
        decisions = world.dispatch.decide(world.now)
    assert time.process_time() - began < 60


def test_a_deployment_never_seen_is_tried_once_before_more_are_started() -> None:
    """Until its first run shows where it executes, one run of a deployment is out at a time."""
    world = World()
    for i in range(3):
        world.request(f"r{i}")
    assert world.started() == ["r0"]
    world.claim("r0")
    assert world.started() == ["r1", "r2"]
    assert world.dispatch.held("lane", "default", "loop") == 3


def test_small_priority_numbers_start_first() -> None:
    """Among due runs the queue with the smallest priority number is served first, then the earlier due."""
    world = World(capacity=1)
    world.pool(queues={"high": QueueSpec(priority=1), "default": QueueSpec(priority=5)})
    world.learned()
    world.request("low1")
    world.request("low2", queue="unheard-of")
    world.request("high1", queue="high")
    order = []
    for _ in range(3):
        (started,) = world.started()
        order.append(started)
        world.claim(started)
        world.move(started, Completed())
    assert order == ["high1", "low1", "low2"]


def test_a_run_past_its_limit_says_that_it_waits_and_starts_when_a_place_frees() -> None:
    """`on_conflict: queue`: one event about the wait, then the start in the step the place frees."""
    world = World().learned()
    world.deployment("d", concurrency=ConcurrencySpec(limit=1))
    world.request("a")
    world.request("b")
    world.request("c")
    assert [(type(d), d.run_id) for d in world.step()] == [(Start, "a"), (Await, "b"), (Await, "c")]
    world.claim("a")
    assert world.step() == []
    world.move("a", Completed())
    assert [(type(d), d.run_id) for d in world.step()] == [(Start, "b")]
    assert world.step(by_s=100) == []  # who waits for a limit has said so, and is not called late


def test_each_key_has_a_limit_of_its_own() -> None:
    """Runs with different keys do not wait for one another."""
    world = World().learned()
    world.deployment("d", concurrency=ConcurrencySpec(limit=1, key="{{ parameters.x }}"))
    world.request("a1", concurrency_key="a")
    world.request("a2", concurrency_key="a")
    world.request("b1", concurrency_key="b")
    assert sorted(world.started()) == ["a1", "b1"]


def test_skip_ends_the_new_run() -> None:
    """`on_conflict: skip`: the new run ends, the old one goes on; a resumed run is never skipped."""
    world = World().learned()
    world.deployment("d", concurrency=ConcurrencySpec(limit=1, on_conflict="skip"))
    world.request("a")
    world.request("b")
    assert [(type(d), d.run_id) for d in world.step()] == [(Start, "a"), (Drop, "b")]
    world.claim("a")
    world.move("a", Suspended())
    world.request("c")
    assert world.started() == ["c"]
    world.move("a", Scheduled(name="Resuming"))
    assert [(type(d), d.run_id) for d in world.step()] == [(Await, "a")]


def test_cancel_running_keeps_the_newest() -> None:
    """`on_conflict: cancel-running`: older running and waiting runs go, the newest starts when there is room."""
    world = World().learned()
    world.deployment("d", concurrency=ConcurrencySpec(limit=1, on_conflict="cancel-running"))
    world.request("a")
    assert world.started() == ["a"]
    world.claim("a")
    world.request("b")
    world.request("c")
    decisions = world.step()
    assert {(type(d), d.run_id) for d in decisions} == {(Cancel, "a"), (Drop, "b"), (Await, "c")}
    assert world.step() == []
    world.move("a", Cancelled())
    assert world.started() == ["c"]


def test_a_run_that_waits_for_its_next_try_in_its_process_keeps_its_place() -> None:
    """AwaitingRetry inside a process is nobody's to start, and its place is nobody's to take."""
    world = World().learned()
    world.deployment("d", concurrency=ConcurrencySpec(limit=1))
    world.request("a")
    assert world.started() == ["a"]
    world.claim("a")
    world.move(
        "a", AwaitingRetry(details={"in_process": True}), scheduled_at=world.now + timedelta(seconds=5)
    )
    world.request("b")
    assert [type(d) for d in world.step(by_s=10)] == [Await]
    world.failover(checkpoint=True)
    assert world.step(by_s=60) == []
    world.move("a", Retrying(), attempt=2)
    world.move("a", Completed())
    assert world.started() == ["b"]


def test_a_paused_pool_or_deployment_holds_its_runs_back() -> None:
    """Pauses hold runs without calling them late; resuming starts them at once."""
    world = World().learned()
    world.deployment("d", paused=True)
    world.request("a")
    world.pool(paused=True)
    world.request("b", deployment="other")
    assert world.step() == []
    assert world.step(by_s=100) == []
    world.deployment("d")
    assert world.step() == []
    world.pool()
    assert set(world.started()) == {"a", "b"}


def test_a_limit_lowered_or_lifted_counts_at_once() -> None:
    """Raising a pool's limit starts what waited under the old one."""
    world = World().learned()
    world.pool(concurrency=1)
    for name in "abc":
        world.request(name)
    assert world.started() == ["a"]
    world.pool(concurrency=2)
    assert world.started() == ["b"]
    world.pool()
    assert world.started() == ["c"]


def test_a_queue_has_a_limit_inside_its_pool() -> None:
    """A full queue does not hold back another queue of the pool."""
    world = World().learned()
    world.pool(queues={"slow": QueueSpec(priority=1, concurrency=1)})
    world.request("s1", queue="slow")
    world.request("s2", queue="slow")
    world.request("d1")
    assert {(type(d), d.run_id) for d in world.step()} == {(Start, "s1"), (Start, "d1"), (Await, "s2")}


def test_cancelling_a_run_cancels_what_it_began() -> None:
    """Children that have processes of their own are cancelled; those inside it end when it has ended."""
    world = World().learned()
    world.request("parent")
    world.request("child", parent="parent")
    world.request("inner", parent="parent", pool=None)
    world.step()
    world.claim("parent")
    world.claim("child")
    world.move("parent", Cancelling())
    assert [(type(d), d.run_id) for d in world.step()] == [(Cancel, "child")]
    world.move("parent", Cancelled())
    decisions = world.step()
    assert decisions == [Finish(FlowRunId("inner"), Cancelled().type, decisions[0].why)]  # type: ignore[union-attr]


def test_a_child_of_a_crashed_run_that_lived_in_its_process_crashes_too() -> None:
    """Nothing is left running in the log that runs nowhere."""
    world = World().learned()
    world.request("parent")
    world.step()
    world.claim("parent")
    world.request("inner", parent="parent", pool=None)
    world.request("child", parent="parent")
    world.step()
    world.move("parent", Crashed())
    world.failover(checkpoint=True)
    assert [(type(d), d.run_id) for d in world.step() if not isinstance(d, Start)] == [(Finish, "inner")]


def test_a_new_leader_keeps_the_places_its_predecessor_gave_away() -> None:
    """A place given before a failover is not given again, even to a run that would now go first."""
    for checkpoint in (False, True):
        world = World().learned()
        world.pool(concurrency=1, queues={"high": QueueSpec(priority=1)})
        world.request("low")
        assert world.started() == ["low"]
        world.request("high", queue="high")
        world.failover(checkpoint=checkpoint)
        decisions = world.step()
        assert [d.run_id for d in decisions if isinstance(d, Start)] == ["low"]
        assert [d.run_id for d in decisions if isinstance(d, Await)] == ["high"]


OPS = st.sampled_from([
    "request", "request", "request", "claim", "claim", "finish", "finish", "suspend", "retry", "resume", "cancel", "cancelled",
    "step", "step", "tick", "failover", "failover-cp", "preempt", "hand-back", "pause", "unpause",
])  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    ops=st.lists(st.tuples(OPS, st.integers(0, 2**16)), min_size=5, max_size=80),
    limit=st.integers(1, 3),
    pool_limit=st.one_of(st.none(), st.integers(1, 4)),
    queue_limit=st.one_of(st.none(), st.integers(1, 2)),
    capacity=st.integers(1, 5),
    on_conflict=st.sampled_from(["queue", "skip", "cancel-running"]),
)
def test_no_history_exceeds_a_limit_or_starts_a_stint_twice(
    ops: list[tuple[str, int]],
    limit: int,
    pool_limit: int | None,
    queue_limit: int | None,
    capacity: int,
    on_conflict: Any,
) -> None:
    """Whatever happens in whatever order, failovers included: limits hold, no stint starts twice under one
    leader, and when everything that runs ends, everything that waits has run."""
    world = World(capacity=capacity)
    spec = ConcurrencySpec(limit=limit, key="k", on_conflict=on_conflict)
    world.deployment("d", concurrency=spec)
    world.deployment("e")
    queues = {"q": QueueSpec(priority=1, concurrency=queue_limit)}
    world.pool(concurrency=pool_limit, queues=queues)
    leader_starts: set[tuple[str, int]] = set()
    ready: set[str] = set()

    def pick(type_: str, n: int) -> str | None:
        some = sorted(run.id for run in world.runs.values() if run.state_type == type_)
        return some[n % len(some)] if some else None

    def step(by_s: float = 0) -> None:
        for decision in world.step(by_s=by_s):
            if isinstance(decision, Start):
                stint = (decision.run_id, decision.since)
                assert stint not in leader_starts, "started twice"
                leader_starts.add(stint)
                ready.add(decision.run_id)
        check()

    def check() -> None:
        in_progress = [
            run for run in world.runs.values()
            if run.state_type in ("PENDING", "RUNNING", "CANCELLING") or (run.state_type == "SCHEDULED" and run.id in ready)
        ]  # fmt: skip
        for key in "xyz":
            assert sum(r.deployment == "d" and r.concurrency_key == key for r in in_progress) <= limit
        if pool_limit is not None:
            assert len(in_progress) <= pool_limit
        if queue_limit is not None:
            assert sum(r.queue == "q" for r in in_progress) <= queue_limit

    for count, (op, n) in enumerate(ops):
        match op:
            case "request":
                world.request(
                    f"r{count:03}", deployment="de"[n % 2], in_s=(n % 3) * 10,
                    queue="q" if n % 5 == 0 else "default", concurrency_key="xyz"[n % 3] if n % 2 == 0 else None,
                )  # fmt: skip
            case "preempt":
                world.request(f"r{count:03}", queue="q", concurrency_key="xyz"[n % 3])
                world.failover(checkpoint=n % 2 == 0)
                leader_starts.clear()
                step()
            case "claim" if ready:
                run_id = sorted(ready)[n % len(ready)]
                ready.discard(run_id)
                if world.runs[run_id].state_type == "SCHEDULED":
                    world.claim(run_id)
            case "finish" if run_id := pick("RUNNING", n) or "":
                world.move(run_id, Completed())
            case "retry" if run_id := pick("RUNNING", n) or "":
                world.move(run_id, AwaitingRetry(details={"in_process": True}))
                step()
                world.move(run_id, Retrying(), attempt=world.runs[run_id].attempt + 1)
            case "suspend" if run_id := pick("RUNNING", n) or "":
                world.move(run_id, Suspended())
            case "resume" if run_id := pick("PAUSED", n) or "":
                world.move(run_id, Scheduled(name="Resuming"))
            case "hand-back" if run_id := pick("RUNNING", n) or "":
                world.move(run_id, Scheduled(name="Resuming"))
            case "cancel" if run_id := pick("SCHEDULED", n) or "":
                world.move(run_id, Cancelled())
            case "cancel" if run_id := pick("RUNNING", n) or "":
                world.move(run_id, Cancelling())
            case "cancelled" if run_id := pick("CANCELLING", n) or "":
                world.move(run_id, Cancelled())
            case "step":
                step()
            case "tick":
                step(by_s=n % 25)
            case "failover" | "failover-cp":
                world.failover(checkpoint=op == "failover-cp")
                # Messages of the old leader are still in the queue: nobody un-pushes them. Only limited ones are
                # kept by the grants, which is what the limits need.
                leader_starts.clear()
            case "pause":
                world.pool(concurrency=pool_limit, queues=queues, paused=True)
            case "unpause":
                world.pool(concurrency=pool_limit, queues=queues)
            case _:
                pass
        ready = {run_id for run_id in ready if world.runs[run_id].state_type == "SCHEDULED"}

    world.pool(concurrency=pool_limit, queues=queues)
    for _ in range(len(world.runs) * 4 + 4):
        step(by_s=30)
        for run_id in sorted(ready):
            if world.runs[run_id].state_type == "SCHEDULED":
                world.claim(run_id)
        ready.clear()
        for run in list(world.runs.values()):
            if run.state_type in ("RUNNING", "CANCELLING"):
                world.move(run.id, Completed() if run.state_type == "RUNNING" else Cancelled())
            elif run.state_type == "PAUSED":
                world.move(run.id, Scheduled(name="Resuming"))
    left = [run.id for run in world.runs.values() if not run.is_final]
    assert left == []
    assert world.dispatch.active == 0
    assert world.dispatch.waiting == 0


@settings(max_examples=100, deadline=None)
@given(
    kinds=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 100)), max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=6),
)
def test_any_split_of_history_gives_the_same_decisions(kinds: list[tuple[int, int]], cuts: list[int]) -> None:
    """Folding in one go, or with a checkpoint written and read at any places, decides the same."""
    world = World()
    for count, (kind, n) in enumerate(kinds):
        open_ = sorted(run.id for run in world.runs.values() if not run.is_final)
        if kind <= 1 or not open_:
            world.request(f"r{count:03}", in_s=n % 40, deployment="de"[n % 2])
            continue
        run = world.runs[open_[n % len(open_)]]
        if run.state_type == "SCHEDULED":
            world.move(
                run.id,
                [Pending(details={"lane": "loop"}), LateState(), Cancelled()][n % 3],
                attempt=run.attempt + (n % 3 == 0),
            )
        elif run.state_type == "PENDING":
            world.move(run.id, Running())
        elif run.state_type == "RUNNING":
            world.move(run.id, [Completed(), Suspended(), Cancelling(), Scheduled()][n % 4])
        elif run.state_type == "PAUSED":
            world.move(run.id, Scheduled())
        else:
            world.move(run.id, Cancelled())

    def defined(dispatch: Dispatch) -> Dispatch:
        dispatch.set_deployment(
            "d", Deployment(name="d", flow="f.py:f", concurrency=ConcurrencySpec(limit=2))
        )
        dispatch.set_pool("default", Pool(name="default", concurrency=5))
        dispatch.set_worker("w1", "default", {"loop": 4, "process": 2})
        return dispatch

    whole, pieces = Dispatch(), Dispatch()
    for run in world.log:
        whole.observe(run)
    for index, run in enumerate(world.log):
        if index in cuts:
            loaded = Dispatch.load(json.loads(json.dumps(pieces.dump())))
            assert loaded is not None
            pieces = loaded
            for again in world.log[max(0, index - 3) : index]:
                pieces.observe(again)  # a batch may come twice
        pieces.observe(run)
    now = world.now + timedelta(seconds=20)
    assert json.dumps(whole.dump(), sort_keys=True) == json.dumps(pieces.dump(), sort_keys=True)
    assert defined(whole).decide(now) == defined(pieces).decide(now)
    assert whole.next_due() == pieces.next_due()
