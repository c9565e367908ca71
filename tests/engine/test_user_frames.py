"""What an author is shown of a failure: own lines, where it was, and which try."""

from __future__ import annotations

import logging
import pickle
import traceback

import pytest
from hark import flow, task
from hark.engine.life.user_frames import format_for_author
from hark.engine.logging import shown_traceback
from hark.engine.states import Failed
from hark.errors import UnknownName


@task(retries=1, retry_delay_seconds=0)
def broken(n: int) -> int:
    try:
        return n // 0
    except ZeroDivisionError as exc:
        raise ValueError("cannot divide") from exc


@flow
def reckless() -> int:
    return broken(1)


def failure_of(run: object) -> BaseException:
    state = run(return_state=True)  # type: ignore[operator]
    assert isinstance(state, type(Failed()))
    exc = state.data
    assert isinstance(exc, BaseException)
    return exc


def test_a_traceback_has_the_authors_lines_and_no_others() -> None:
    """Causes included; below it stands which task run it was, of which flow run, and which try."""
    exc = failure_of(reckless)
    text = format_for_author(exc)
    assert "in reckless" in text
    assert text.count("in broken") == 2
    assert "ZeroDivisionError" in text
    assert "ValueError: cannot divide" in text
    for ours in ("task_engine.py", "flow_life.py", "flow_driver.py", "tasks.py"):
        assert ours not in text, text
    (note,) = exc.__notes__
    assert note.startswith("in task run 'broken-")
    assert note.endswith(", try 2 of 2")
    assert " of flow run '" in note
    assert note in text


def test_a_failure_that_a_flow_passes_on_keeps_the_place_it_came_from() -> None:
    """A task that fails with the result of another is not where it happened."""

    @task
    def first() -> None:
        raise KeyError("a")

    @task
    def second() -> None:
        first()

    @flow
    def both() -> None:
        second()

    (note,) = failure_of(both).__notes__
    assert note.startswith("in task run 'first-")


def test_an_exception_from_hark_itself_is_shown_whole() -> None:
    """Where there are no lines of the author's, the others are all there is to see; groups are cut member by member."""
    with pytest.raises(TypeError) as own:
        task("no function")  # type: ignore[call-overload]
    assert "tasks.py" in format_for_author(own.value) or "in test_an_exception" in format_for_author(
        own.value
    )
    group = BaseExceptionGroup("two", [own.value, failure_of(reckless)])
    text = format_for_author(group)
    assert "task_engine.py" not in text
    assert "cannot divide" in text


def test_the_log_of_a_task_that_failed_has_its_lines_even_if_the_flow_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The exception is in the task's last line, for whoever wants to know what the flow caught."""

    @flow
    def careful() -> int:
        try:
            return broken(1)
        except ValueError:
            return 0

    with caplog.at_level(logging.INFO, "hark.task_runs"):
        assert careful() == 0
    (last,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert last.getMessage().startswith("try 2 of 2: ")
    assert last.exc_info is not None
    assert isinstance(last.exc_info[1], ValueError)


def test_the_traceback_of_a_failure_is_made_once_for_all_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The console and the run's log both show it, and to make it is half of what a failure costs. Other handlers get it whole."""
    made: list[BaseException] = []

    def make(exc: BaseException) -> str:
        made.append(exc)
        return "shown"

    monkeypatch.setattr("hark.engine.logging.format_for_author", make)
    exc = ValueError("x")
    record = logging.makeLogRecord({"exc_info": (ValueError, exc, None)})
    assert [shown_traceback(record), shown_traceback(record)] == ["\nshown"] * 2
    assert (made, record.exc_text) == ([exc], None)
    assert shown_traceback(logging.makeLogRecord({})) == ""


def test_what_to_do_next_is_in_the_traceback() -> None:
    """Whoever sees an error of ours in a program is told what the command line tells, after a pickle, too."""
    error = pickle.loads(pickle.dumps(UnknownName("deployment", "nightly", known=["weekly"])))
    assert "".join(traceback.format_exception(error)).endswith("\n→ there is 'weekly'\n")
