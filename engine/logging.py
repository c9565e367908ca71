"""Loggers of runs: standard logging, to the console and, where a run is tracked, to its own log stream.

``hark.flow_runs`` and ``hark.task_runs`` are ordinary loggers; their records carry ``flow_run_id``, ``flow_run_name``,
``flow_name`` and, in tasks, ``task_run_id``, ``task_run_name``, ``task_name``.
"""

from __future__ import annotations

import builtins
import logging
import sys
import threading
from collections.abc import Generator, Mapping, MutableMapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from ..errors import MissingContextError
from .context import FlowRunContext, TaskRunContext, current_run
from .life.user_frames import format_for_author

if TYPE_CHECKING:
    from ..bus.session import Session
    from .runs.run import FlowRun
    from .runs.task_run import TaskRun

__all__ = [
    "APILogHandler", "LogEavesdropper", "PrefectConsoleHandler", "PrefectLogAdapter", "RunLogger", "disable_logger",
    "disable_run_logger", "flow_run_logger", "get_logger", "get_run_logger", "patch_print", "print_as_log", "printing",
    "run_loggers", "shown_traceback", "task_run_logger",
]  # fmt: skip

MAX_MESSAGE_CHARS = 100_000
"""A log line longer than this is cut: one line must fit one message of the broker."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "hark_session",
    "hark_traceback",
}
_FIELDS = frozenset(
    {"flow_run_id", "flow_run_name", "flow_name", "task_run_id", "task_run_name", "task_name"}
)

_Adapter: TypeAlias = "logging.LoggerAdapter[logging.Logger]"
_run_logs_off: ContextVar[bool] = ContextVar("hark_run_logs_off", default=False)


class RunLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger that knows its run; ``extra`` given in a call is kept beside the run's own fields.

    A line with ``extra={"send_to_api": False}`` stays in this process: it is not kept with the run.
    """

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs

    def getChild(self, suffix: str, extra: Mapping[str, Any] | None = None) -> RunLogger:  # noqa: N802  logging's word
        """Return the logger of the same run under a longer name, with more fields on every record."""
        return RunLogger(self.logger.getChild(suffix), {**(self.extra or {}), **(extra or {})})


def shown_traceback(record: logging.LogRecord) -> str:
    """Return the traceback that stands below a line in the logs of runs, from its line break on; "" if the line has none."""
    exc = record.exc_info[1] if record.exc_info else None
    if exc is None:
        return ""
    # Kept, for each handler asks; and not as ``exc_text``, by which a program's own handlers would show it cut.
    text: str | None = getattr(record, "hark_traceback", None)
    if text is None:
        text = record.hark_traceback = "\n" + format_for_author(exc)
    return text


class _Handler(logging.Handler):
    """One whose lock an interruption cannot leave taken: before Python 3.13 it may come between lock and block."""

    def handle(self, record: logging.LogRecord) -> bool:
        """Emit a record, unless a filter stops it."""
        found: object = self.filter(record)
        if found:
            assert self.lock is not None
            with self.lock:
                self.emit(found if isinstance(found, logging.LogRecord) else record)
        return bool(found)


class _ToConsole(_Handler):
    """Writes to the standard error stream there is *now*, unless the program has set up logging of its own."""

    def emit(self, record: logging.LogRecord) -> None:
        if logging.getLogger().handlers:
            return
        try:
            what = getattr(record, "task_run_name", None)
            kind = "Task run"
            if what is None:
                what, kind = getattr(record, "flow_run_name", "-"), "Flow run"
            moment = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S.%f")[:-3]
            line = f"{moment} | {record.levelname:7} | {kind} {what!r} - {record.getMessage()}"
            line += shown_traceback(record)
            sys.stderr.write(line + "\n")
        except Exception:
            self.handleError(record)


class _ToRunLogs(_Handler):
    """Sends the records of tracked runs to the log stream."""

    def emit(self, record: logging.LogRecord) -> None:
        session: Session | None = getattr(record, "hark_session", None)
        flow_run_id = getattr(record, "flow_run_id", None)
        if session is None or flow_run_id is None or getattr(record, "send_to_api", True) is False:
            return
        try:
            from ..bus.run_logs import LogLine
            from ..errors import LimitError

            message = record.getMessage()
            message += shown_traceback(record)
            if len(message) > MAX_MESSAGE_CHARS:
                message = message[:MAX_MESSAGE_CHARS] + f"… ({len(message)} characters)"
            extra = {
                name: value
                if isinstance(value, str | int | float | bool) or value is None
                else repr(value)[:1000]
                for name, value in vars(record).items()
                if name not in _STANDARD and name not in _FIELDS
            }
            line = LogLine(
                flow_run_id=flow_run_id,
                task_run_id=getattr(record, "task_run_id", None),
                level=record.levelno,
                logger=record.name,
                message=message,
                at=datetime.fromtimestamp(record.created, UTC),
                extra=extra,
            )
            try:
                session.bus.run_logs.publish_nowait(flow_run_id, line)
            except LimitError:
                # Logs make room for events: a line is dropped, and counted where people look.
                _dropped.count += 1
                if _dropped.count in (1, 1000, 100_000):
                    logging.getLogger("hark.engine").warning(
                        "%d log lines were dropped: they come faster than the broker takes them",
                        _dropped.count,
                    )
        except Exception:
            self.handleError(record)


class _Dropped:
    count = 0


_dropped = _Dropped()
_ready = False
_lock = threading.Lock()


def run_loggers() -> tuple[logging.Logger, logging.Logger]:
    """Return the loggers of flow runs and of task runs, their handlers in place."""
    global _ready
    flows, tasks = logging.getLogger("hark.flow_runs"), logging.getLogger("hark.task_runs")
    if not _ready:
        with _lock:
            if not _ready:
                for logger in (flows, tasks):
                    if logger.level == logging.NOTSET:
                        logger.setLevel(logging.INFO)
                    logger.addHandler(_ToConsole())
                    logger.addHandler(_ToRunLogs())
                _ready = True
    return flows, tasks


def get_logger(name: str | None = None) -> logging.Logger:
    """Return the logger ``hark.<name>``, or ``hark``; ``prefect.<name>`` is the same one, in flows written for Prefect."""
    root, dot, rest = (name or "").partition(".")
    if root in ("", "hark", "prefect"):
        return logging.getLogger(f"hark{dot}{rest}")
    return logging.getLogger(f"hark.{name}")


def get_run_logger(context: FlowRunContext | TaskRunContext | None = None, **extra: Any) -> RunLogger:
    """Return the logger of the run the code is in.

    Args:
        extra: fields to put on every record.
    Raises:
        MissingContextError: the code is in no run. TypeError: ``context`` is none.
    """
    run = context or current_run.get()
    if run is not None and not isinstance(run, FlowRunContext | TaskRunContext):
        raise TypeError(f"a context is that of a flow run or a task run, not {type(run).__name__!r}: {run!r}")
    if run is None:
        if _run_logs_off.get():
            return RunLogger(run_loggers()[0], extra)
        raise MissingContextError(
            "nothing to log for: there is no active flow or task run context",
            hint="call get_run_logger() inside a flow or task",
        )
    if isinstance(run, TaskRunContext):
        flow = run.flow_context
        tracker = flow.tracker if flow else None
        return logger_of_task_run(
            run.task_run,
            flow.flow_run if flow else None,
            tracker.session if tracker else run.task_run.session,
            extra,
        )
    return logger_of_flow_run(run.flow_run, run.tracker.session if run.tracker else None, extra)


def logger_of_flow_run(
    run: FlowRun, session: Session | None, extra: dict[str, Any] | None = None
) -> RunLogger:
    """Return the logger of a flow run whose lines go out by ``session``, if there is one."""
    return RunLogger(
        run_loggers()[0],
        {
            "flow_run_id": run.id, "flow_run_name": run.name, "flow_name": run.flow_name, "hark_session": session,
            **(extra or {}),
        },
    )  # fmt: skip


def logger_of_task_run(
    task_run: TaskRun, flow_run: FlowRun | None, session: Session | None, extra: dict[str, Any] | None = None
) -> RunLogger:
    """Return the logger of a task run whose lines go out by ``session``, if there is one."""
    return RunLogger(
        run_loggers()[1],
        {
            "flow_run_id": flow_run.id if flow_run else task_run.log_id, "flow_run_name": flow_run.name if flow_run else None,
            "flow_name": flow_run.flow_name if flow_run else None, "task_run_id": task_run.id,
            "task_run_name": task_run.name, "task_name": task_run.task_name, "hark_session": session, **(extra or {}),
        },
    )  # fmt: skip


def flow_run_logger(
    flow_run: FlowRun | None = None, flow: Any = None, flow_run_id: str | None = None, **extra: Any
) -> RunLogger:
    """Return the logger of a flow run, for code outside it such as hooks; in a tracked run its lines go to the run's log.

    Args:
        flow: taken, since hooks are given one; the run knows its flow's name.
        flow_run_id: of a run of which no more is known.
        extra: fields to put on every record.
    """
    from ..bus.session import current_session

    run = FlowRunContext.get()
    session = run.tracker.session if run is not None and run.tracker is not None else current_session()
    if flow_run is not None:
        return logger_of_flow_run(flow_run, session, extra)
    name = getattr(flow, "name", None)
    fields = {"flow_run_id": flow_run_id, "flow_run_name": None, "flow_name": name, "hark_session": session}
    return RunLogger(run_loggers()[0], {**fields, **extra})


def task_run_logger(
    task_run: TaskRun, task: Any = None, flow_run: FlowRun | None = None, flow: Any = None, **extra: Any
) -> RunLogger:
    """Return the logger of a task run, for code outside it such as hooks. ``task`` and ``flow`` are known from the runs."""
    from ..bus.session import current_session

    del task, flow
    run = FlowRunContext.get()
    if flow_run is None and run is not None and run.flow_run.id == task_run.flow_run_id:
        flow_run = run.flow_run
    session = run.tracker.session if run is not None and run.tracker is not None else current_session()
    logger = logger_of_task_run(task_run, flow_run, session, extra)
    if flow_run is None and task_run.flow_run_id is not None:
        return RunLogger(logger.logger, {**(logger.extra or {}), "flow_run_id": task_run.flow_run_id})
    return logger


@contextmanager
def disable_logger(name: str) -> Generator[None]:
    """Drop what is logged under a name inside the block."""
    logger = logging.getLogger(name)
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


@contextmanager
def disable_run_logger() -> Generator[None]:
    """Have ``get_run_logger()`` work outside of runs inside the block, and drop all that runs log: for tests of ``task.fn``."""
    flows, tasks = run_loggers()
    token = _run_logs_off.set(True)
    try:
        with disable_logger(flows.name), disable_logger(tasks.name):
            yield
    finally:
        _run_logs_off.reset(token)


class LogEavesdropper(logging.Handler):
    """Keeps the lines that are logged under a name inside the block: ``with LogEavesdropper("hark") as log: … log.text()``."""

    def __init__(self, eavesdrop_on: str, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self._logger = logging.getLogger(eavesdrop_on)
        self._lines: list[str] = []
        self.setFormatter(logging.Formatter("[%(levelname)s]: %(message)s"))

    def __enter__(self) -> Self:
        self._logger.addHandler(self)
        return self

    def __exit__(self, *exc: object) -> None:
        self._logger.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self.format(record))

    def text(self) -> str:
        """Return the lines so far, each as ``[INFO]: what was said``."""
        return "\n".join(self._lines)


# Under these names Prefect has them, for programs that set up logging with them.
PrefectLogAdapter = RunLogger
PrefectConsoleHandler = _ToConsole
APILogHandler = _ToRunLogs


# --- print --------------------------------------------------------------------------------------------

_print = builtins.print
_printers = 0


def print_as_log(*args: Any, **kwargs: Any) -> None:
    """Print to the log of the run the code is in, if that has ``log_prints``; else as ``print`` does."""
    _print_to_log(*args, **kwargs)


def _print_to_log(*args: Any, **kwargs: Any) -> None:
    """Stand in for ``print`` while any run has ``log_prints``; prints outside such runs go where they went."""
    run = current_run.get()
    if run is None or not run.log_prints or kwargs.get("file") not in (None, sys.stdout, sys.stderr):
        _print(*args, **kwargs)
        return
    separator = kwargs.get("sep")
    get_run_logger(run).info("%s", (" " if separator is None else separator).join(str(arg) for arg in args))


def patch_print() -> AbstractContextManager[None]:
    """Have ``print`` go inside the block to the log of the run the code is in, if that has ``log_prints``."""
    return printing(True)


@contextmanager
def printing(to_log: bool) -> Generator[None]:
    """Have ``print`` go to the run's log inside the block, for runs that ask for it."""
    global _print, _printers
    if not to_log:
        yield
        return
    with _lock:
        _printers += 1
        if _printers == 1:
            _print = builtins.print
            builtins.print = _print_to_log
    try:
        yield
    finally:
        with _lock:
            _printers -= 1
            if _printers == 0 and builtins.print is _print_to_log:
                builtins.print = _print
