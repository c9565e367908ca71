"""Deployments described in code, as flows written for Prefect describe them, and their schedules."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from dateutil.rrule import DAILY
from dateutil.rrule import rrule as dateutil_rrule
from hark import flow
from hark.bus.session import Session
from hark.engine.annotations import freeze
from hark.server.description import (
    ConcurrencyLimitConfig,
    ConcurrencyLimitStrategy,
    ConcurrencyOptions,
    RunnerDeployment,
)
from hark.triggers.schedule_kinds import (
    CronSchedule,
    IntervalSchedule,
    NoSchedule,
    RRuleSchedule,
    construct_schedule,
    is_schedule_type,
)
from hark.triggers.shorthand import Cron, Interval, RRule, Schedule


@flow
def etl(day: str = "mon", size: int = 1) -> None: ...


def test_a_deployment_is_described_as_for_prefect() -> None:
    """Schedules as objects, limits as objects, frozen parameters; what images need is taken and does nothing."""
    described = etl.to_deployment(
        "nightly",
        schedules=[
            Cron("0 6 * * *", timezone="Europe/Berlin", slug="early", parameters={"size": 2}),
            Interval(timedelta(hours=1), anchor_date=datetime(2026, 1, 1, tzinfo=UTC), active=False),
            RRule("RRULE:FREQ=DAILY"),
        ],
        parameters={"day": freeze("tue")},
        concurrency_limit=ConcurrencyLimitConfig(
            limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
        ),
        job_variables={"env": {}},
        entrypoint_type=None,
    )
    assert described.parameters == {"day": "tue"}
    assert described.concurrency == {"limit": 1, "on_conflict": "skip"}
    assert described.schedules == [
        {"cron": "0 6 * * *", "timezone": "Europe/Berlin", "parameters": {"size": 2}, "name": "early"},
        {"interval": "1h", "anchor": "2026-01-01T00:00:00+00:00", "paused": True},
        {"rrule": "FREQ=DAILY"},
    ]
    assert etl.to_deployment("a", schedule=IntervalSchedule(interval=60)).schedules[0]["interval"] == "1m"


def test_a_description_is_read_by_the_names_prefect_has() -> None:
    """What was said, what the flow says where nothing was, and each schedule with its kind."""
    said = etl.to_deployment(
        "nightly", tags=["t"], work_pool_name="p", work_queue_name="q", paused=True, job_variables={"x": 1},
        schedules=[{"schedule": CronSchedule(cron="0 6 * * *"), "active": False}, Interval(3600, slug="hourly")],
        concurrency_limit=ConcurrencyLimitConfig(limit=2, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
        entrypoint_type="module_path",
    )  # fmt: skip
    assert (said.full_name, said.flow_name, said.work_pool_name, said.work_queue_name) == (
        "etl/nightly", "etl", "p", "q",
    )  # fmt: skip
    assert (said.tags, said.job_variables, said.version) == (["t"], {"x": 1}, etl.version)
    assert said.entrypoint.endswith("test_description:etl")
    cron, hourly = said.schedules
    assert (cron.schedule, cron.active) == (CronSchedule(cron="0 6 * * *"), False)
    assert isinstance(hourly.schedule, IntervalSchedule)
    assert (hourly.schedule.interval, hourly.slug, hourly.active) == (timedelta(hours=1), "hourly", True)
    assert (said.concurrency_limit, said.concurrency_options) == (
        2, ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
    )  # fmt: skip
    plain = RunnerDeployment.from_flow(etl, "plain")
    assert (plain.schedules, plain.storage, plain.work_queue_name, plain.concurrency_options) == (
        [],
        None,
        None,
        None,
    )


def test_schedules_that_no_deployment_could_have_are_refused_when_it_is_described() -> None:
    """With a ``ValueError``, before anything is served or stored."""
    wrong: list[dict[str, Any]] = [
        {"cron": "bad"}, {"interval": 0}, {"interval": -1}, {"rrule": "bad"}, {"schedules": ["x"]}, {"cron": 3},
    ]  # fmt: skip
    for options in wrong:
        with pytest.raises(ValueError, match=r"\w"):
            etl.to_deployment("x", **options)


def test_schedules_of_the_client_are_objects_of_their_kinds() -> None:
    """Compared by what they say, read from JSON and from ``dateutil``, refused where they make no sense."""
    assert CronSchedule(cron="0 4 * * *") == CronSchedule(cron="0 4 * * *")
    anchored = IntervalSchedule(
        interval=timedelta(hours=1), anchor_date=datetime(2026, 1, 1, tzinfo=ZoneInfo("Europe/Berlin"))
    )
    assert anchored.timezone == "Europe/Berlin"
    assert IntervalSchedule.model_validate(anchored.model_dump(mode="json")).interval == anchored.interval
    rule = RRuleSchedule.from_rrule(dateutil_rrule(DAILY, dtstart=datetime(2026, 1, 1)))
    assert rule.to_rrule()[1] == datetime(2026, 1, 2)
    assert construct_schedule(cron="0 4 * * *", timezone="UTC") == CronSchedule(
        cron="0 4 * * *", timezone="UTC"
    )
    assert construct_schedule(rrule="FREQ=DAILY").written() == {"rrule": "FREQ=DAILY", "timezone": "UTC"}
    assert is_schedule_type(NoSchedule())
    wrong: list[Callable[[], object]] = [
        lambda: CronSchedule(cron="R * * * *"), lambda: CronSchedule(cron="* * * * *", timezone="Mars"),
        lambda: IntervalSchedule(interval=timedelta(0)), lambda: RRuleSchedule(rrule="bad"), construct_schedule,
        lambda: construct_schedule(cron="* * * * *", interval=3),
        lambda: construct_schedule(cron="* * * * *", anchor_date="2026-01-01"), NoSchedule().written,
    ]  # fmt: skip
    for make in wrong:
        with pytest.raises(ValueError, match=r"\w"):
            make()


def test_a_schedule_that_makes_no_sense_is_refused_when_it_is_made() -> None:
    """As Prefect does, with a ``ValueError``."""
    bad: list[Callable[[], object]] = [
        lambda: Cron("not cron"),
        lambda: RRule("FREQ=NEVER"),
        lambda: Schedule(cron="* * * * *", interval=timedelta(1)),
    ]
    for make in bad:
        with pytest.raises(ValueError, match=r"\w"):
            make()


async def test_flows_are_deployed_in_async_code(session: Session) -> None:
    """``adeploy`` and ``ato_deployment``; options that speak of images are taken."""
    assert await etl.adeploy("a", work_pool_name="default", image="x", build=False) == "a"
    assert (await etl.ato_deployment("b", tags=["t"])).tags == ["t"]
