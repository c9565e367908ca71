"""What is counted of the transitions of flow runs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hark.bus import Recorded
from hark.engine.dispatching.presence import WorkerInfo
from hark.server.metrics import Metrics


def saw(metrics: Metrics, data: Any) -> None:
    raw = data if isinstance(data, bytes) else orjson.dumps({"type": "flow-run.x", "data": data})
    metrics.saw(Recorded(seq=1, subject="hark.ev.flow-run.x.r", recorded_at=datetime.now(UTC), raw=raw))


def moved(flow: str, state: str, **run: Any) -> dict[str, Any]:
    return {"flow": {"name": flow}, "state": {"type": state}, "run": {"id": "r", **run}}


def counted(metrics: Metrics) -> dict[str, float]:
    """Return what has been counted, by name, flow and state."""
    return {
        f"{sample.name} {sample.labels['flow']} {sample.labels['state']}": sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name in ("hark_flow_run_transitions_total", "hark_flow_run_duration_seconds_sum")
    }


def test_transitions_and_durations_are_counted() -> None:
    """By flow and state; how long a run took, once it has ended."""
    metrics = Metrics()
    for data in (
        moved("etl", "RUNNING"), moved("etl", "RUNNING", duration_s=1.0), moved("etl", "COMPLETED", duration_s=2.5),
        moved("etl", "COMPLETED", duration_s=None),
    ):  # fmt: skip
        saw(metrics, data)
    assert counted(metrics) == {
        "hark_flow_run_transitions_total etl RUNNING": 2,
        "hark_flow_run_transitions_total etl COMPLETED": 2,
        "hark_flow_run_duration_seconds_sum etl COMPLETED": 2.5,
    }


def test_names_cannot_fill_the_memory() -> None:
    """The flows beyond a number are counted as one."""
    metrics = Metrics()
    for n in range(300):
        saw(metrics, moved(f"f{n}", "RUNNING"))
    found = counted(metrics)
    assert len(found) == 201
    assert found["hark_flow_run_transitions_total other RUNNING"] == 100


@pytest.mark.parametrize(
    "data",
    [b"{", b"[]", b"{}", None, [], {"flow": "etl"}, moved("etl", "NO_STATE"), {**moved("etl", "RUNNING"), "run": []}],
)  # fmt: skip
def test_what_is_no_transition_is_left_out(data: Any) -> None:
    """Anything may be in the log under this subject."""
    metrics = Metrics()
    saw(metrics, data)
    assert counted(metrics) == {}


def test_places_are_counted_by_pool() -> None:
    """Of all workers that are there; of those that have gone nothing is left."""
    metrics, here = Metrics(), datetime.now(UTC)
    one = WorkerInfo(
        "1", "one", "default", loop=4, processes=2, host="a", pid=1, taken_loop=3, waiting_loop=7
    )
    two = WorkerInfo("2", "two", "default", loop=4, processes=2, host="b", pid=1, waiting_processes=1)
    gpu = WorkerInfo("3", "three", "gpu", loop=0, processes=1, host="c", pid=1, taken_processes=1)

    def found() -> dict[str, float]:
        return {
            " ".join((sample.name, *sample.labels.values())): sample.value
            for family in metrics.registry.collect()
            for sample in family.samples
            if sample.name.startswith("hark_worker_") and sample.value
        }

    metrics.saw_workers([(gpu, here)])
    metrics.saw_workers([(one, here), (two, here)])
    assert found() == {
        "hark_worker_places default async": 8.0, "hark_worker_places default sync": 4.0,
        "hark_worker_runs default async taken": 3.0, "hark_worker_runs default async waiting": 7.0,
        "hark_worker_runs default sync waiting": 1.0,
    }  # fmt: skip
