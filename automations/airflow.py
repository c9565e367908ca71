"""What converted Airflow tasks stand on: the context they ask for, XComs, operators, variables and connections.

``hark migrate airflow`` writes flows that import this. It is small on purpose: a task that is rewritten as plain Python needs
none of it.
"""

from __future__ import annotations

import inspect
import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from ..config import environment
from ..errors import DefinitionError

__all__ = [
    "BaseHook", "Connection", "NotConverted", "Pushed", "TaskInstance", "Variable", "bash", "context", "email", "finish",
    "http", "item", "with_context",
]  # fmt: skip

_SKIP_CODE = 99
"""A Bash command that exits so is skipped, as in Airflow."""
_RETURN = "return_value"


class Pushed(dict[str, Any]):
    """What a task returned (``return_value``) together with what it pushed under keys."""


class TaskInstance:
    """``ti``: pulls what tasks before gave, pushes under keys."""

    def __init__(self, task_id: str, given: Mapping[str, Any]) -> None:
        self.task_id, self._given, self.pushed = task_id, given, Pushed()

    def xcom_pull(
        self, task_ids: str | Sequence[str] | None = None, key: str = _RETURN, default: Any = None, **_: Any
    ) -> Any:
        """Return what a task gave; of several a list, of none named the first that has it."""
        if task_ids is None:
            found = (_value(v, key, default) for v in self._given.values())
            return next((v for v in found if v is not default), default)
        if not isinstance(task_ids, str):
            return [self.xcom_pull(one, key, default) for one in task_ids]
        return _value(self._given.get(task_ids), key, default)

    def xcom_push(self, key: str, value: Any, **_: Any) -> None:
        """Give a value under a key."""
        self.pushed[key] = value


def _value(given: Any, key: str, default: Any) -> Any:
    if isinstance(given, Pushed):
        return given.get(key, default)
    return given if key == _RETURN and given is not None else default


class Variable:
    """Airflow's call for variables, on Hark's."""

    @staticmethod
    def get(key: str, default_var: Any = None, deserialize_json: bool = False, **more: Any) -> Any:
        """Return a variable; the default if there is none."""
        from ..engine.values import Variable as Ours

        found = Ours.get(key)
        if found is None:
            return more.get("default", default_var)
        return json.loads(found) if deserialize_json and isinstance(found, str) else found

    @staticmethod
    def set(key: str, value: Any, **_: Any) -> None:
        """Set a variable."""
        from ..engine.values import Variable as Ours

        Ours.set(key, value, overwrite=True)


class Connection:
    """A connection: the secret ``conn_<id>``, a URI as in ``AIRFLOW_CONN_…``."""

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        self.conn_type, self.host, self.port = parts.scheme, unquote(parts.hostname or ""), parts.port
        self.login, self.password = unquote(parts.username or ""), unquote(parts.password or "")
        self.schema, self.extra_dejson = unquote(parts.path.lstrip("/")), dict(parse_qsl(parts.query))
        self._uri = uri

    def get_uri(self) -> str:
        return self._uri


class BaseHook:
    """Airflow's call for connections."""

    @staticmethod
    def get_connection(conn_id: str) -> Connection:
        """Return a connection of the secret ``conn_<id>``."""
        from ..engine.secret import Secret

        return Connection(str(Secret.load(f"conn_{conn_id}").get()))


class NotConverted:
    """A thing of Airflow that has no equivalent: it says so when it is used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise DefinitionError(
            f"{self._name} of Airflow was not converted", hint="write this part anew in plain Python"
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return NotConverted(f"{self._name}.{name}")


def context(task_id: str, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what Airflow's tasks and templates may name. ``ds`` and the like are of the time the run was scheduled for."""
    from ..engine import runtime

    at = runtime.flow_run.scheduled_start_time or datetime.now(UTC)
    params = dict(runtime.flow_run.parameters or {})
    run_id = str(runtime.flow_run.id or "")
    ti = TaskInstance(task_id, given or {})
    day = at.date().isoformat()
    return {
        "ds": day, "ds_nodash": day.replace("-", ""), "ts": at.isoformat(), "ts_nodash": at.strftime("%Y%m%dT%H%M%S"),
        "logical_date": at, "execution_date": at, "data_interval_start": at, "data_interval_end": at, "run_id": run_id,
        "params": params, "dag_run": SimpleNamespace(conf=params, run_id=run_id, logical_date=at),
        "ti": ti, "task_instance": ti, "var": SimpleNamespace(value=_Named(Variable.get), json=_Named(_json_variable)),
        "conn": _Named(BaseHook.get_connection), "macros": SimpleNamespace(ds_add=_ds_add, datetime=datetime, timedelta=timedelta),
    }  # fmt: skip


def _ds_add(ds: str, days: int) -> str:
    return (date.fromisoformat(ds) + timedelta(days=days)).isoformat()


def _json_variable(name: str) -> Any:
    return Variable.get(name, deserialize_json=True)


class _Named:
    """``var.value.x``: looks up by attribute, for templates."""

    def __init__(self, look_up: Callable[[str], Any]) -> None:
        self._look_up = look_up

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._look_up(name)


def render(value: Any, known: Mapping[str, Any]) -> Any:
    """Return ``value`` with the templates in its texts filled in."""
    if isinstance(value, str) and ("{{" in value or "{%" in value):
        from jinja2 import StrictUndefined
        from jinja2.sandbox import SandboxedEnvironment

        return SandboxedEnvironment(undefined=StrictUndefined).from_string(value).render(known)
    if isinstance(value, dict):
        return {key: render(one, known) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(render(one, known) for one in value)
    return value


def with_context(function: Callable[..., Any], *, task_id: str) -> Callable[..., Any]:
    """Return ``function`` as a task's: what it names of Airflow's context is given to it, templates in arguments are filled in.

    The result takes ``xcom`` besides, what tasks before gave by their id.
    """
    parameters = inspect.signature(function).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    def run(*args: Any, xcom: Mapping[str, Any] | None = None, **kwargs: Any) -> Any:
        known = context(task_id, xcom)
        args, kwargs = render(tuple(args), known), render(kwargs, known)
        positional = list(parameters)[: len(args)]
        wanted = {k: v for k, v in known.items() if (takes_all or k in parameters) and k not in positional}
        returned = function(*args, **{**wanted, **kwargs})
        pushed: Pushed = known["ti"].pushed
        return Pushed({**pushed, _RETURN: returned}) if pushed else returned

    run.__name__ = run.__qualname__ = function.__name__
    run.__doc__ = function.__doc__
    return run


def bash(
    command: str, *, task_id: str, xcom: Mapping[str, Any] | None = None, env: Mapping[str, str] | None = None,
    cwd: str | None = None, append_env: bool = False,
) -> str:  # fmt: skip
    """Run a command, its output as lines of the run's log; return the last one.

    Raises:
        RuntimeError: it exits with something else than 0; 99 skips the task.
    """
    from ..engine.exceptions import Skip

    known = context(task_id, xcom)
    given = render(dict(env), known) if env is not None else None
    if given is not None and append_env:
        given = {**environment(), **given}
    process = subprocess.Popen(
        ["/bin/bash", "-c", render(command, known)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", cwd=render(cwd, known), env=given,
    )  # fmt: skip
    last = ""
    assert process.stdout is not None
    with process:
        for line in process.stdout:
            last = line.rstrip("\n")
            print(last)  # noqa: T201 - the flow logs what is printed
    if process.returncode == _SKIP_CODE:
        raise Skip(f"the command exited with {_SKIP_CODE}")
    if process.returncode:
        raise RuntimeError(f"the command exited with {process.returncode}: {last}")
    return last


def http(
    endpoint: str = "", *, task_id: str, xcom: Mapping[str, Any] | None = None, http_conn_id: str = "http_default",
    method: str = "POST", data: Any = None, headers: Mapping[str, str] | None = None,
) -> str:  # fmt: skip
    """Call an endpoint of a connection; return the body of the answer.

    Raises:
        httpx.HTTPStatusError: the answer is an error.
    """
    import httpx

    known = context(task_id, xcom)
    where = BaseHook.get_connection(http_conn_id)
    scheme = where.conn_type if where.conn_type in ("http", "https") else where.schema or "http"
    base = f"{scheme}://{where.host}" + (f":{where.port}" if where.port else "")
    sent = render(data, known)
    body: dict[str, Any] = (
        {"params": sent}
        if method == "GET"
        else {"json" if isinstance(sent, dict | list) else "content": sent}
    )
    answer = httpx.request(
        method, f"{base}/{render(endpoint, known).lstrip('/')}", headers=render(dict(headers or {}), known), timeout=60,
        auth=(where.login, where.password) if where.login else None, **body,
    )  # fmt: skip
    answer.raise_for_status()
    return answer.text


def email(
    to: Any, subject: str, html_content: str = "", *, task_id: str, xcom: Mapping[str, Any] | None = None
) -> None:
    """Ask for a mail: an event ``email.requested``, which a rule of the converted configuration sends."""
    from ..bus.emit import emit

    known = context(task_id, xcom)
    emit(
        "email.requested", subject=task_id,
        data={"to": render(to, known), "title": render(subject, known), "body": render(html_content, known)},
    )  # fmt: skip


def item(value: Any, key: Any) -> Any:
    """Return one of several outputs of a task."""
    return value[key]


def finish(*last: Any) -> None:
    """Wait for the last tasks of a flow; the flow fails if one of them did."""
    for future in last:
        future.wait()
    for future in last:
        future.result()
