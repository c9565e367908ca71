"""``Hark``: the async client for everything the HTTP API can do. The command line is made of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import anyio
import orjson

from ..bus.event import Event, check_type, checked, format_time
from ..errors import DefinitionError, HarkError, UnavailableError
from ..vocabulary import JsonObject, JsonValue
from .address import find_api
from .client_people import Page, _object, _part
from .client_rules import RuleCalls
from .lean import import_httpx

if TYPE_CHECKING:
    import httpx

    from ..config import Settings

__all__ = ["ApiError", "Hark", "Page", "ServerUnreachable"]

_LINES = 20_000
"""Lines of a run's log asked for at once: the server reads the log from its beginning for every page."""


class ApiError(HarkError):
    """The server said no. ``status`` is the HTTP code, ``problem`` the problem document."""

    def __init__(self, status: int, problem: JsonObject) -> None:
        detail = problem.get("detail") or problem.get("title") or f"HTTP {status}"
        super().__init__(str(detail), hint=str(problem.get("hint") or ""))
        self.status, self.problem = status, problem


class ServerUnreachable(UnavailableError):
    """No server answers at the address."""

    def __init__(self, url: str, why: str) -> None:
        super().__init__(
            f"no server answers at {url} ({why})",
            hint="start one with `hark up`, or name another with HARK_API_URL",
        )
        self.url = url


class Hark(RuleCalls):
    """A connection to a server. Use it as an async context manager::

        async with Hark() as hark:
            await hark.emit("order.paid", subject="order/42", data={"total": 12})
            run = await hark.run_deployment("nightly-etl", parameters={"day": "2026-01-01"}, wait=True)

    Without arguments it talks to the server of ``HARK_API_URL``, else to the one running on this machine's home.

    Raises (every method):
        ServerUnreachable: nobody answers; ApiError: the server refused, with its reason and hint.
    """

    def __init__(
        self,
        api_url: str | None = None,
        api_key: str | None = None,
        *,
        settings: Settings | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        if api_url is None or api_key is None:
            from ..config import load_settings

            settings = settings or load_settings()
            api_url = api_url or find_api(settings)
            if api_key is None and settings.api_key is not None:
                api_key = settings.api_key.get_secret_value()
        self.url = api_url.rstrip("/")
        self._key = api_key
        self._timeout_s = timeout_s
        self._http: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        httpx = import_httpx()
        headers = {"User-Agent": "hark-client"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers=headers,
            timeout=httpx.Timeout(self._timeout_s, connect=5.0),
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    # --- the two ways to ask ---------------------------------------------------------------------------

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: JsonValue = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """Return the JSON of one answer (None for an empty one)."""
        import httpx

        if self._http is None:
            raise RuntimeError("use `async with Hark() as hark:`")
        sent = dict(headers or {})
        body = content
        if json is not None:
            body = _encoded(json)
            sent.setdefault("content-type", "application/json")
        query = _query(params or {})
        try:
            extra: dict[str, Any] = {"timeout": timeout_s} if timeout_s is not None else {}
            answer = await self._http.request(method, path, params=query, content=body, headers=sent, **extra)
        except httpx.TransportError as exc:
            raise ServerUnreachable(self.url, _why(exc)) from exc
        return _json_of(answer)

    @asynccontextmanager
    async def _stream(
        self, path: str, params: Mapping[str, Any], headers: Mapping[str, str]
    ) -> AsyncIterator[AsyncIterator[str]]:
        import httpx

        if self._http is None:
            raise RuntimeError("use `async with Hark() as hark:`")
        try:
            # The server sends a comment every 15 s, so 45 s of silence is a dead connection.
            timeout = httpx.Timeout(45.0, connect=5.0)
            async with self._http.stream(
                "GET", path, params=_query(params), headers=dict(headers), timeout=timeout
            ) as answer:
                if answer.status_code >= 400:
                    await answer.aread()
                    _json_of(answer)
                yield answer.aiter_lines()
        except httpx.TransportError as exc:
            raise ServerUnreachable(self.url, _why(exc)) from exc

    async def _get(self, path: str, **params: Any) -> Any:
        return await self.request("GET", path, params=params)

    # --- events ----------------------------------------------------------------------------------------

    async def emit(
        self,
        type: str,
        *,
        subject: str | None = None,
        data: JsonValue = None,
        source: str = "/client",
        time: datetime | None = None,
        id: str | None = None,
        partitionkey: str | None = None,
    ) -> Event:
        """Store one event and return it. It is in the log when this returns."""
        extra: dict[str, Any] = {}
        if id is not None:
            extra["id"] = id
        if time is not None:
            extra["time"] = time
        event = Event(
            type=type, source=source, subject=subject, data=data, partitionkey=partitionkey, **extra
        )
        checked(event)
        await self.emit_many([event])
        return event

    async def emit_many(self, events: Sequence[Event]) -> list[str]:
        """Store events, in order, all or none answered; return their ids."""
        for event in events:
            check_type(event.type)  # the server cleans types of other implementations, and this one is Hark's
        if len(events) == 1:  # so that what is wrong with it is not told as that of a batch's first
            body, media = events[0].to_json(), "application/cloudevents+json"
        else:
            body = b"[" + b",".join(e.to_json() for e in events) + b"]"
            media = "application/cloudevents-batch+json"
        headers = {"content-type": media}
        answer = await self.request("POST", "/api/events", content=body, headers=headers)
        return [str(i) for i in answer["ids"]]

    async def events(self, **filters: Any) -> Page:
        """List events, newest first: ``type, source, subject, correlation, id_prefix, since, until, limit, cursor``."""
        return await self._page("/api/events", **filters)

    async def audit(self, **filters: Any) -> Page:
        """List who changed what, newest first: ``by, since, limit, cursor``."""
        return await self._page("/api/audit", **filters)

    async def event(self, id: str) -> JsonObject:
        """Return one event with what it led to."""
        return _object(await self._get(f"/api/events/{_part(id)}"))

    async def watch_events(
        self, *types: str, after: int | None = None, forever: bool = True, **filters: Any
    ) -> AsyncIterator[JsonObject]:
        """Yield events as they are stored, each ``{"seq", "recorded_at", "event"}``; reconnects without gaps.

        Args:
            types: patterns such as ``order.*``; none is all.
            after: begin behind this log sequence; None is from now on.
            forever: reconnect when the connection breaks; otherwise raise ``ServerUnreachable``.
        """
        last, wait_s = after, 0.25
        while True:
            headers = {"last-event-id": str(last)} if last is not None else {}
            try:
                async with self._stream("/api/events/stream", {"type": types, **filters}, headers) as lines:
                    async for seq, data in _sse(lines):
                        wait_s = 0.25
                        if seq is not None:
                            last = seq
                        if data:
                            yield _object(orjson.loads(data))
            except ServerUnreachable:
                if not forever:
                    raise
            if not forever:
                return
            await anyio.sleep(wait_s)
            wait_s = min(5.0, wait_s * 2)

    # --- runs ------------------------------------------------------------------------------------------

    async def flow_runs(self, **filters: Any) -> Page:
        """List flow runs, newest first: ``state, flow, deployment, tag, parent, id_prefix, since, limit, cursor``."""
        return await self._page("/api/flow-runs", **filters)

    async def flow_run(self, id: str) -> JsonObject:
        return _object(await self._get(f"/api/flow-runs/{_part(id)}"))

    async def flow_run_logs(self, id: str) -> list[JsonObject]:
        """Return the log lines of a run, oldest first."""
        return await self._all(f"/api/flow-runs/{_part(id)}/logs", page=_LINES)

    async def follow_flow_run_logs(self, id: str) -> AsyncGenerator[JsonObject]:
        """Yield the log lines of a run from its first on, as they come, until it is over."""
        cursor: str | None = None
        while True:
            page: Any = await self.request(
                "GET", f"/api/flow-runs/{_part(id)}/logs",
                params={"limit": _LINES, "cursor": cursor, "wait_s": 25}, timeout_s=40,
            )  # fmt: skip
            for line in page["items"]:
                yield line
            cursor = page["next_cursor"]
            if cursor is None:
                return

    async def task_run(self, id: str) -> JsonObject:
        return _object(await self._get(f"/api/task-runs/{_part(id)}"))

    async def tasks_alone(self, **filters: Any) -> Page:
        """List task runs outside any flow, those that changed last first: ``state, task, limit, cursor``."""
        return await self._page("/api/task-runs", **filters)

    async def task_runs(self, flow_run_id: str, *, limit: int | None = None) -> list[JsonObject]:
        """Return the task runs of a run, or the first ``limit`` (from 1) of them."""
        return await self._all(f"/api/flow-runs/{_part(flow_run_id)}/task-runs", most=limit)

    async def flow_run_action(self, id: str, action: str, **body: JsonValue) -> JsonObject:
        """Do ``cancel, retry, suspend, resume`` or ``set-state`` to a run; return the run."""
        return _object(await self.request("POST", f"/api/flow-runs/{_part(id)}/{action}", json=body))

    async def cancel_flow_run(self, id: str, *, reason: str = "") -> JsonObject:
        return await self.flow_run_action(id, "cancel", reason=reason)

    async def retry_flow_run(self, id: str, *, from_start: bool = False) -> JsonObject:
        return await self.flow_run_action(id, "retry", from_start=from_start)

    async def delete_flow_run(self, id: str, *, reason: str = "") -> JsonObject:
        """Delete a run that is over, with its task runs, logs and artifacts.

        Raises:
            ApiError: 404, there is no such run (any more); 409, it is not over.
        """
        return _object(
            await self.request("DELETE", f"/api/flow-runs/{_part(id)}", params={"reason": reason or None})
        )

    async def wait_for_flow_run(self, id: str, *, timeout_s: float = 3600.0) -> JsonObject:
        """Return the run once it is over; the server holds the request, nobody polls.

        Raises:
            TimeoutError: it is not over after ``timeout_s`` seconds.
        """
        with anyio.fail_after(timeout_s):
            while True:
                answer = await self.request(
                    "GET", f"/api/flow-runs/{_part(id)}/wait", params={"timeout_s": 25}, timeout_s=40
                )
                if answer["is_final"]:
                    return _object(answer)

    # --- deployments, rules, schedules -----------------------------------------------------------------

    async def deployments(self) -> list[JsonObject]:
        return await self._all("/api/deployments")

    async def deployment(self, name: str) -> JsonObject:
        return _object(await self._get(f"/api/deployments/{_deployment_part(name)}"))

    async def run_deployment(
        self,
        name: str,
        *,
        parameters: JsonObject | None = None,
        tags: Sequence[str] = (),
        queue: str | None = None,
        scheduled_at: datetime | None = None,
        delay: timedelta | None = None,
        key: str | None = None,
        wait: bool = False,
        timeout_s: float = 3600.0,
        kind: str = "api",
    ) -> JsonObject:
        """Ask for a run and return it.

        Args:
            key: asking twice with one key is asking once.
            wait: return when the run is over.
        """
        body: JsonObject = {"parameters": parameters or {}, "tags": list(tags), "kind": kind}
        if queue is not None:
            body["queue"] = queue
        if scheduled_at is not None:
            body["scheduled_at"] = format_time(scheduled_at)
        if delay is not None:
            body["delay_s"] = delay.total_seconds()
        if key is not None:
            body["key"] = key
        run = _object(await self.request("POST", f"/api/deployments/{_deployment_part(name)}/run", json=body))
        return await self.wait_for_flow_run(str(run["id"]), timeout_s=timeout_s) if wait else run

    async def backfill(self, deployment: str, /, **asked: JsonValue) -> JsonObject:
        """Run slots of the past: ``from_, to, max_parallel, schedules, reprocess, parameters, dry_run, …`` (see the API).

        Asking twice is asking once; return how far it has come, or with ``dry_run`` the plan.
        """
        sent: JsonObject = {key.rstrip("_"): value for key, value in asked.items() if value is not None}
        path = f"/api/deployments/{_deployment_part(deployment)}/backfill"
        return _object(await self.request("POST", path, json=sent, timeout_s=120))

    async def backfills(self, *, deployment: str | None = None) -> list[JsonObject]:
        return await self._all("/api/backfills", deployment=deployment)

    async def backfill_progress(self, name: str, *, wait_s: float = 0, over: int | None = None) -> JsonObject:
        """Return one backfill; with ``wait_s``, once more than ``over`` of its runs are over."""
        path, params = f"/api/backfills/{_part(name)}", {"wait_s": wait_s, "over": over}
        return _object(await self.request("GET", path, params=params, timeout_s=wait_s + 30))

    async def cancel_backfill(self, name: str, *, runs: bool = False) -> JsonObject:
        return _object(
            await self.request("POST", f"/api/backfills/{_part(name)}/cancel", json={"runs": runs})
        )

    async def delete_deployment(self, name: str) -> JsonObject:
        """Take a deployment away, with its schedules and triggers."""
        return _object(await self.request("DELETE", f"/api/deployments/{_deployment_part(name)}"))

    async def schedules(self, *, deployment: str | None = None, count: int = 1) -> list[JsonObject]:
        return await self._all("/api/schedules", deployment=deployment, count=count)

    async def next_slots(self, *, deployment: str | None = None, count: int = 5) -> list[JsonObject]:
        """List slots that are to come, soonest first, those that are excluded with the reason."""
        return await self._all("/api/schedules/next", deployment=deployment, count=count)

    async def sources(self) -> list[JsonObject]:
        return await self._all("/api/sources")

    async def source(self, name: str) -> JsonObject:
        return _object(await self._get(f"/api/sources/{_part(name)}"))

    async def sinks(self) -> list[JsonObject]:
        return await self._all("/api/sinks")

    async def sink(self, name: str) -> JsonObject:
        return _object(await self._get(f"/api/sinks/{_part(name)}"))

    async def webhooks(self) -> list[JsonObject]:
        return await self._all("/api/webhooks")

    async def webhook(self, name: str) -> JsonObject:
        return _object(await self._get(f"/api/webhooks/{_part(name)}"))

    async def webhook_requests(
        self, name: str, *, limit: int = 50, refused: bool | None = None
    ) -> list[JsonObject]:
        """List the requests kept of a webhook, the newest first."""
        shown = None if refused is None else str(refused).lower()
        path = f"/api/webhooks/{_part(name)}/requests"
        return (await self._page(path, limit=limit, refused=shown)).items

    async def webhook_request(self, id: str) -> JsonObject:
        return _object(await self._get(f"/api/webhook-requests/{_part(id)}"))

    async def redeliver_webhook_request(self, id: str) -> JsonObject:
        """Take a kept request in again; the answer has ``status`` and ``answer`` as its sender would be given them."""
        return _object(await self.request("POST", f"/api/webhook-requests/{_part(id)}/redeliver"))

    async def pause(self, kind: str, name: str) -> JsonObject:
        """Pause a ``deployment, automation, schedule, webhook`` or ``pool``."""
        return _object(await self.request("POST", f"/api/{kind}s/{quote(name)}/pause"))

    async def resume(self, kind: str, name: str) -> JsonObject:
        return _object(await self.request("POST", f"/api/{kind}s/{quote(name)}/resume"))

    async def channels(self) -> list[JsonObject]:
        return await self._all("/api/channels")

    async def test_channel(
        self, name: str, *, title: str | None = None, body: str | None = None
    ) -> JsonObject:
        sent: JsonObject = {"title": title, "body": body}
        path = f"/api/channels/{_part(name)}/test"
        return _object(await self.request("POST", path, json=sent, timeout_s=120))

    async def pools(self) -> list[JsonObject]:
        return await self._all("/api/pools")

    async def workers(self, *, pool: str | None = None) -> list[JsonObject]:
        """List the workers that are there, of one pool or of all."""
        return await self._all("/api/workers", pool=pool)

    async def artifacts(self, **filters: Any) -> Page:
        """List artifacts as they are now, the latest first: ``type, flow_run, limit, cursor``."""
        return await self._page("/api/artifacts", **filters)

    # --- dead letters, configuration, the service ------------------------------------------------------

    async def config_names(self) -> JsonObject:
        """Return the names that are live and came from no configuration, by kind."""
        return _object(await self._get("/api/config/names"))

    async def plan(self, records: JsonObject, *, prune: bool = False, impact: bool = False) -> JsonObject:
        """Return what applying compiled records (``Manifest.to_json``) would change.

        Args:
            impact: also what each changed rule would have done over the last 7 days.
        """
        body: JsonObject = {"manifest": records, "prune": prune, "impact": impact}
        return _object(await self.request("POST", "/api/config/plan", json=body, timeout_s=120))

    async def apply(self, records: JsonObject, *, prune: bool = False) -> JsonObject:
        body: JsonObject = {"manifest": records, "prune": prune}
        return _object(await self.request("POST", "/api/config/apply", json=body, timeout_s=120))

    async def status(self) -> JsonObject:
        return _object(await self._get("/api/status"))

    async def rebuild(self) -> JsonObject:
        """Fold the read model anew from the log; return when it has caught up."""
        return _object(await self.request("POST", "/api/rebuild", timeout_s=3600))

    async def send_webhook(
        self, name: str, *, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, JsonObject]:
        """Deliver a request to ``/hooks/{name}``; return its status and answer, whatever they are."""
        import httpx

        if self._http is None:
            raise RuntimeError("use `async with Hark() as hark:`")
        try:
            answer = await self._http.post(f"/hooks/{_part(name)}", content=body, headers=dict(headers))
        except httpx.TransportError as exc:
            raise ServerUnreachable(self.url, _why(exc)) from exc
        try:
            value = orjson.loads(answer.content or b"{}")
        except orjson.JSONDecodeError:
            value = {"body": answer.text[:1000]}
        return answer.status_code, value if isinstance(value, dict) else {"body": value}


def _encoded(value: JsonValue) -> bytes:
    try:
        return orjson.dumps(value, default=str)
    except TypeError as exc:  # a number beyond 64 bits, half a character, a key that is no text
        raise DefinitionError(
            f"this cannot be sent as JSON: {exc}",
            hint="give texts of whole characters, and large numbers as texts",
        ) from exc


def _why(exc: Exception) -> str:
    return str(exc) or type(exc).__name__


def _query(params: Mapping[str, Any]) -> httpx.QueryParams:
    import httpx

    out: list[tuple[str, str | int | float | bool | None]] = []
    for name, value in params.items():
        if value is None:
            continue
        values = value if isinstance(value, list | tuple) else [value]
        for one in values:
            text = (
                format_time(one)
                if isinstance(one, datetime)
                else str(one).lower()
                if one is True
                else str(one)
            )
            out.append((name, text))
    return httpx.QueryParams(out)


def _json_of(answer: httpx.Response) -> Any:
    value: Any = None
    if answer.content:
        try:
            value = orjson.loads(answer.content)
        except orjson.JSONDecodeError:
            value = {"detail": answer.text[:500]}
    if answer.status_code >= 400:
        problem = value if isinstance(value, dict) else {"detail": str(value)}
        raise ApiError(answer.status_code, problem)
    return value


async def _sse(lines: AsyncIterator[str]) -> AsyncIterator[tuple[int | None, str]]:
    """Yield (id, data) of each server-sent event."""
    seq: int | None = None
    data: list[str] = []
    async for line in lines:
        if not line:
            if data or seq is not None:
                yield seq, "\n".join(data)
            seq, data = None, []
        elif line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif line.startswith("id:") and line[3:].strip().isdigit():
            seq = int(line[3:])


def _deployment_part(name: str) -> str:
    """Return a deployment's name for a path; raise ``DefinitionError`` for one with its flow before it."""
    if "/" in name:
        raise DefinitionError(
            f"there is no deployment {name!r}: a deployment has a name of its own, without its flow's",
            hint=f"ask for {name.rpartition('/')[2]!r}; `hark deployments ls` lists them",
        )
    return _part(name)
