"""A made-up but well-formed stretch of log: runs with tasks, rules, actions, messages, and some rubbish between.

Run as a program it folds such a log into a file, slowly enough to be killed halfway:
``python history.py FILE COUNT SEED BATCH``.
"""

from __future__ import annotations

import random
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import orjson
from hark.bus.event import Event, Recorded
from hark.bus.subject import RUN_DELETED, subject_of
from hark.engine.runs.run import Cause, FlowRun, RunRequest, transition_event
from hark.engine.states import Completed, Failed, Pending, Running, TimedOut
from hark.storage.fold import fold
from hark.storage.store import Store
from hark.vocabulary import FlowRunId, JsonObject, StateType, derived_id

STREAM = "HARK@test"
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def task_event(run: FlowRun, index: int, word: str, at: datetime, rng: random.Random) -> Event:
    """Return a task transition in the shape the engine gives it."""
    id_ = f"{derived_id(run.id, str(index))[:24]}0001{index:08x}"
    data: JsonObject = {
        "flow_run": {"id": run.id, "name": run.name},
        "flow": {"name": run.flow_name},
        "deployment": {"name": run.deployment} if run.deployment else None,
        "task": {"name": f"step-{index % 3}", "key": "k"},
        "run": {
            "id": id_,
            "name": f"step-{index}",
            "attempt": 1,
            "index": index,
            "started_at": None,
            "duration_s": None,
        },
        "state": {"type": word.upper(), "name": word.capitalize(), "message": None},
        "previous": None,
        "call": f"step-{index}-0-abcdef",
        "upstream": [],
        "tags": ["blue"] if rng.random() < 0.3 else [],
    }
    if word == "completed":
        data["result"] = {"inline": list(range(rng.randrange(5))), "format": "json"}
    return Event(
        type=f"task-run.{word}", source="/hark/engine", id=derived_id(id_, word), subject=f"task-run/{id_}", time=at,
        data=data, correlationid=run.correlationid or run.id, causationid=run.causationid,
    )  # fmt: skip


def one_story(n: int, rng: random.Random, at: datetime) -> list[Event]:
    """Return the events of one story: an order comes in, a rule starts a run, its tasks, a message about it."""
    order = Event(
        type=rng.choice(["order.paid", "order.shipped", "github.push"]), source="/shop", id=f"order-{n}",
        subject=f"order/{n}", time=at, data={"total": n},
    )  # fmt: skip
    firing = Event(
        type="automation.triggered", source="/hark/automations", id=derived_id("firing", str(n)), time=at,
        subject="automation/on-order", data={"automation": {"name": "on-order"}, "key": f"c{n % 5}", "count": 1},
        **order.caused(),
    )  # fmt: skip
    request = RunRequest(
        flow_name=f"flow-{n % 3}", id=FlowRunId(derived_id("run", str(n))), deployment=f"dep-{n % 4}" if n % 2 else None,
        tags=("prod",) if n % 3 else ("dev", "slow"), pool="default", trigger_event=firing,
        cause=Cause("automation", "on-order", firing.id), parameters={"n": n},
    )  # fmt: skip
    run = FlowRun.requested(request, now=at)
    events = [order, firing, transition_event(run, previous=None, id=derived_id(run.id, "0"))]
    last: StateType = StateType.SCHEDULED
    for i, state in enumerate((Pending(timestamp=at), Running(timestamp=at + timedelta(seconds=1))), 1):
        run = run.moved(state, attempt=1)
        events.append(transition_event(run, previous=last, id=derived_id(run.id, str(i))))
        last = state.type
    for index in range(rng.randrange(6)):
        events += [
            task_event(run, index, word, at + timedelta(seconds=2), rng)
            for word in ("pending", "running", "completed")
        ]
    if n % 7:  # the others are still running
        end = at + timedelta(seconds=3)
        state = rng.choice(
            [Completed(timestamp=end), Failed(message=f"bad {n}", timestamp=end), TimedOut(timestamp=end)]
        )
        run = run.moved(state)
        events.append(transition_event(run, previous=last, id=derived_id(run.id, "9")))
    outcomes = ("failed", "executed") if n % 5 else ("failed", "dead-lettered")
    events += [
        Event(type=f"action.{word}", source="/hark/actions", id=derived_id("action", str(n), word), time=at,
              subject=f"action/a{n}",
              data={"key": f"a{n}", "action": {"kind": "notify"}, "automation": "on-order", "firing": firing.id,
                    "attempt": 1, "error": None if word == "executed" else "no route"},
              **firing.caused())
        for word in outcomes
    ]  # fmt: skip
    events += [
        Event(type="notification.sent", source="/hark/notifications", id=f"n{n}", time=at, subject=f"notification/{n}",
              data={"channel": "oncall", "kind": "mailto", "severity": "error", "attempt": 1, "duration_s": 0.5},
              **firing.caused()),
        Event(type="webhook.received", source="/webhooks/github", id=f"w{n}", time=at, subject="webhook/github", data={}),
        Event(type="webhook.rejected", source="/hark/webhooks", id=f"v{n}", time=at, subject="webhook/github",
              data={"webhook": {"name": "github"}, "reason": "signature", "status": 401}),
        Event(type="schedule.fired", source="/hark/scheduler", id=f"s{n}", time=at, subject=f"schedule/dep-{n % 4}",
              data={"deployment": {"name": f"dep-{n % 4}"}, "schedule": {"name": "0"}, "slot": "2026-01-01T06:00:00+01:00",
                    "run": {"id": f"r{n}"}}),
        Event(type="worker.started", source="/hark/worker", id=f"x{n}", time=at, subject=f"worker/w{n % 2}",
              data={"worker": {"id": f"id-{n % 2}", "name": f"w{n % 2}", "pool": "default"}}),
    ]  # fmt: skip
    if n % 7 == 3:
        events.append(
            Event(type=RUN_DELETED, source="/hark/engine", id=f"d{n}", time=at, subject=f"flow-run/{run.id}")
        )
    return events


def history(count: int, seed: int) -> list[Recorded]:
    """Return ``count`` messages as the log would hold them; the same for the same arguments."""
    rng = random.Random(seed)
    waiting: list[list[Event]] = []
    out: list[Recorded] = []
    n = 0
    while len(out) < count:
        seq = len(out) + 1
        at = BEGIN + timedelta(seconds=seq)
        if rng.random() < 0.02:
            rubbish = rng.choice([
                b"not json", b"[1]", b'{"type": 5}', b'{"type":"flow-run.failed","id":"i","source":"/x","data":{}}',
                b'{"type":"task-run.running","id":"i","source":"/x","data":null}', b"",
            ])  # fmt: skip
            out.append(Recorded(seq, "hark.ev.rubbish", at, rubbish))
            continue
        while len(waiting) < 4:
            waiting.append(one_story(n, rng, at))
            n += 1
        story = rng.choice(waiting)
        event = story.pop(0)
        if not story:
            waiting.remove(story)
        out.append(Recorded(seq, subject_of(event), at, event.to_json()))
    return out


async def fold_slowly(path: Path, count: int, seed: int, batch: int) -> None:
    """Fold such a log into ``path``, printing each sequence before it is committed."""
    log = history(count, seed)
    async with Store(path, stream=STREAM) as store:
        while store.reached.seq < count:
            after = store.reached.seq
            changes = fold(log[after : after + batch])
            sys.stdout.write(f"{changes.reached}\n")
            sys.stdout.flush()
            await store.commit(changes)


if __name__ == "__main__":
    anyio.run(fold_slowly, Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    sys.stdout.write(orjson.dumps({"done": True}).decode() + "\n")
