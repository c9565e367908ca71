"""One connection to the broker: nats-py's client, with requests that fail fast and errors of our own tree.

Nothing above this file sees an error of the client library.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self, cast

import anyio
import nats.errors
import orjson
from anyio import AsyncContextManagerMixin
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext

from ..config import BusConfig
from ..errors import AccessDenied, BusUnavailable, EventTooLarge, HarkError, StreamFull
from ..vocabulary import JsonObject
from .address import BrokerAddress, without_secret
from .arrival import Arrival, DirectClient, subscribe
from .creds import Credentials
from .replies import Refusal
from .turnstile import Turnstile
from .wire import Wire, frame, header_lines

__all__ = ["ApiError", "Connection", "ConnectionLost", "NotReady", "Unreachable", "translated"]

log = logging.getLogger(__name__)

_RECONNECT_WAIT_S = 0.1
_PING_S = 10
"""Two unanswered pings make a dead peer known where TCP does not."""
_PENDING_BYTES = 8 << 20
_TRY_S = 1.0
_LATE_S = 0.1
"""A time limit that is heard of so much too late says that the loop stood still."""
_TIMES_LATE = 10
_STILL_AT_IT = 10158  # the first try of this Nats-Msg-Id has not been decided yet
_PAUSE_S = 0.03
"""Before asking again: a stream recovers in 10 to 100 ms after its broker was restarted."""

Callback = Callable[[], None]


class Unreachable(BusUnavailable):
    """There was no connection in time: nothing has been sent."""


class NotReady(BusUnavailable):
    """Nobody answers there, or JetStream has no leader: usual for a moment after a start."""


class NoAnswer(BusUnavailable):
    """No answer in time: the request may or may not have been carried out."""


class ConnectionLost(BusUnavailable):
    """The connection broke while the answer was awaited: the request may or may not have been carried out."""


class ApiError(HarkError):
    """JetStream refused a request. ``code`` is HTTP-like, ``err_code`` names the fault."""

    def __init__(self, what: str, *, code: int, err_code: int, description: str) -> None:
        super().__init__(f"the broker refused {what}: {description} (code {code}, error {err_code})")
        self.what, self.code, self.err_code, self.description = what, code, err_code, description


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn errors of the client library, raised inside, into ours; ``what`` says what was being done."""
    try:
        yield
    except nats.errors.MaxPayloadError as exc:
        raise EventTooLarge(what, size_bytes=0, limit_bytes=0) from exc
    except (nats.errors.Error, OSError, TimeoutError) as exc:
        raise BusUnavailable(f"{what}: {str(exc) or type(exc).__name__}") from exc


class _Client(DirectClient):
    """nats-py's client, which gives up for good on any error line the broker sends; this one reconnects."""

    async def _process_err(self, err_msg: str) -> None:
        if "permissions violation" in err_msg or self.is_closed or self.is_connecting:
            await super()._process_err(err_msg)
            return
        log.warning("bus.broker_error", extra={"error": err_msg})
        await self._process_op_err(nats.errors.Error(f"nats: {err_msg}"))

    async def _flush_pending(self, force_flush: bool = False) -> Any:
        try:
            return await super()._flush_pending(force_flush)
        except (RuntimeError, TypeError) as exc:
            # What uvloop, and asyncio of Python 3.13.0, say of a socket that has closed and that nobody has noticed yet.
            raise ConnectionResetError(f"the socket is closed: {exc}") from exc


class Connection(AsyncContextManagerMixin):
    """A connection that reconnects by itself, for as long as it is entered.

    Attributes:
        nc: the client; js: its JetStream context (default timeout ``config.request_timeout_s``).

    Args:
        lull_s: see ``DirectClient``.
    Raises:
        BusUnavailable: on entering, if no server answers within ``config.connect_timeout_s``.
        AccessDenied: on entering, if the broker refuses the credentials.
    """

    def __init__(
        self, address: BrokerAddress, config: BusConfig, *, name: str = "hark", lull_s: float = 0.0
    ) -> None:
        self.address = address
        self.config = config
        self.name = name
        self.nc: Client = _Client(lull_s=lull_s)
        self.js: JetStreamContext = self.nc.jetstream(timeout=config.request_timeout_s)
        self._waiting: dict[str, asyncio.Future[Arrival]] = {}
        self._inbox = ""
        self._inbox_len = 0
        self._next_token = 0
        self._turnstile = Turnstile()
        self._heard = 0
        self._wire: Wire | None = None
        self._connected = asyncio.Event()
        self._connected_at = 0.0
        self._on_reconnect: list[Callback] = []
        self._on_disconnect: list[Callback] = []
        self._closing = False
        self._refused: asyncio.Future[None] | None = None
        self._last_error: Exception | None = None

    # --- facts ----------------------------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        """Whether the broker is reachable, as far as we know."""
        return self.nc.is_connected

    @property
    def connected_s(self) -> float:
        """For how long the broker has been reachable without a break, in seconds; 0 while it is not."""
        return time.monotonic() - self._connected_at if self._connected.is_set() else 0.0

    @property
    def max_payload(self) -> int:
        """The largest message the broker takes, headers included, in bytes."""
        return self.nc.max_payload

    @property
    def server_version(self) -> tuple[int, int, int]:
        """The broker's version, such as ``(2, 15, 1)``."""
        version = self.nc.connected_server_version
        return version.major, version.minor, version.patch

    @property
    def server_version_text(self) -> str:
        """The broker's version as it writes it, such as ``2.15.1``."""
        return str(self.nc._server_info.get("version", "0.0.0"))

    @property
    def url(self) -> str:
        """The server we are connected to, without credentials."""
        found = self.nc.connected_url
        return without_secret(found.geturl()) if found is not None else self.address.url

    @property
    def peer(self) -> tuple[Any, ...] | None:
        """Where the server's end of a plain connection is, for ``socket.connect``; None of any other, and of none."""
        found = self.nc.connected_url
        writer = getattr(self.nc._transport, "_io_writer", None)
        if found is None or found.scheme != "nats" or writer is None:
            return None
        name = writer.get_extra_info("peername")
        return name if isinstance(name, tuple) else None

    # --- life -----------------------------------------------------------------------------------------

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, None]:
        await self._connect()
        try:
            yield self
        finally:
            with anyio.CancelScope(shield=True):
                await self._close()

    async def _connect(self) -> None:
        address, config = self.address, self.config
        creds = Credentials(address.credentials) if address.credentials else None
        if creds is not None:
            creds.check()
        tls = address.ssl_context()
        self._refused = asyncio.get_running_loop().create_future()
        opening = asyncio.ensure_future(
            self.nc.connect(
                servers=list(address.urls),
                name=self.name,
                error_cb=self._error,
                disconnected_cb=self._disconnected,
                reconnected_cb=self._reconnected,
                max_reconnect_attempts=-1,
                reconnect_time_wait=cast("int", _RECONNECT_WAIT_S),
                connect_timeout=cast("int", min(2.0, config.connect_timeout_s)),
                ping_interval=_PING_S,
                max_outstanding_pings=2,
                pending_size=_PENDING_BYTES,
                no_echo=False,
                tls=tls,
                user=address.user,
                password=address.password,
                token=address.token,
                user_jwt_cb=creds.jwt if creds else None,
                signature_cb=creds.sign if creds else None,
                drain_timeout=2,
            )
        )
        connected = False
        try:
            await asyncio.wait(
                {opening, self._refused},
                timeout=config.connect_timeout_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if opening.done():
                opening.result()
                connected = True
        except (nats.errors.Error, OSError, ValueError) as exc:
            self._last_error = exc
        finally:
            if not connected:
                with anyio.CancelScope(shield=True):
                    opening.cancel()
                    await asyncio.wait({opening})
                    await self._close()
        if not connected:
            raise self._why_not()
        self._connected_at = time.monotonic()
        self._connected.set()
        self._inbox = f"_INBOX.{self.nc._nuid.next().decode()}"
        self._inbox_len = len(self._inbox) + 1
        await subscribe(self.nc, f"{self._inbox}.*", self._on_answer)
        self._wire = Wire(self.nc, on_refused=lambda: self._fail_waiting("the socket is closed"))

    def _why_not(self) -> HarkError:
        """Return the error that says why no connection came about."""
        last, where = self._last_error, self.address.url
        if self._refused is not None and self._refused.done():
            return AccessDenied(
                f"the broker at {where} refuses the credentials ({last})",
                hint="check HARK_BUS__USER, HARK_BUS__PASSWORD, HARK_BUS__TOKEN or HARK_BUS__CREDENTIALS",
            )
        return BusUnavailable(
            f"no broker answers at {where} within {self.config.connect_timeout_s:g} s"
            + (f" (last: {str(last) or type(last).__name__})" if last is not None else ""),
            hint="start one with `hark up`, or set HARK_NATS_URL to one that runs",
        )

    async def _close(self) -> None:
        """Close, and wait for every task of the client, which only asks them to end."""
        self._closing = True
        nc = self.nc
        tasks = {
            task
            for task in (
                nc._reading_task, nc._ping_interval_task, nc._flusher_task, nc._reconnection_task,
                *(sub._wait_for_msgs_task for sub in nc._subs.values()),
            )
            if task is not None
        }  # fmt: skip
        self._fail_waiting("the connection was closed")
        try:
            await asyncio.wait_for(nc.close(), 2.0)
        except (nats.errors.Error, OSError, TimeoutError, RuntimeError, TypeError) as exc:
            # The last two: what the client writes last, to a socket that is closed already (see _flush_pending).
            log.debug("bus.close_failed", extra={"error": repr(exc)})
        tasks.discard(cast("asyncio.Task[None]", asyncio.current_task()))
        # More than once: a task of the client that is cancelled while its connection attempt fails loses the
        # cancellation and tries on (asyncio.wait_for before Python 3.12).
        deadline = asyncio.get_running_loop().time() + 2.0
        while tasks and asyncio.get_running_loop().time() < deadline:
            for task in tasks:
                task.cancel()
            _, tasks = await asyncio.wait(tasks, timeout=0.02)
        if nc._transport is not None:
            nc._transport.close()  # type: ignore[no-untyped-call]

    # --- callbacks of the client ----------------------------------------------------------------------

    def on_reconnect(self, callback: Callback) -> Callback:
        """Call ``callback`` in the loop after every reconnect; returns what ends that. It must not block."""
        self._on_reconnect.append(callback)
        return lambda: self._on_reconnect.remove(callback)

    def on_disconnect(self, callback: Callback) -> Callback:
        """Call ``callback`` in the loop whenever the connection breaks; returns what ends that."""
        self._on_disconnect.append(callback)
        return lambda: self._on_disconnect.remove(callback)

    async def _error(self, exc: Exception) -> None:
        self._last_error = exc
        text = str(exc).lower()
        if self._refused is not None and not self._refused.done() and not self._connected.is_set():
            if "authorization" in text or "authentication" in text:
                self._refused.set_result(None)
            return
        if "permissions violation" in text:
            log.error("bus.not_permitted", extra={"error": str(exc)})
            return
        log.debug("bus.client_error", extra={"error": repr(exc)})

    async def _disconnected(self) -> None:
        if self._closing:
            return
        if self._connected.is_set():
            log.warning("bus.disconnected", extra={"broker": self.address.url})
        self._connected.clear()
        self._fail_waiting("the connection broke")
        for callback in list(self._on_disconnect):
            callback()

    async def _reconnected(self) -> None:
        log.info("bus.reconnected", extra={"broker": self.url})
        self._connected_at = time.monotonic()
        self._connected.set()
        for callback in list(self._on_reconnect):
            callback()

    # --- asking ---------------------------------------------------------------------------------------

    async def connected(self, timeout_s: float | None = None) -> None:
        """Return once the broker is reachable.

        Raises:
            Unreachable: it was not within ``timeout_s`` (default ``config.request_timeout_s``).
            BusUnavailable: the connection is closed.
        """
        if self.nc.is_connected:
            return
        wait_s = self.config.request_timeout_s if timeout_s is None else timeout_s
        if self._closing or self.nc.is_closed:
            raise BusUnavailable("the connection to the broker is closed")
        try:
            async with asyncio.timeout(wait_s):
                await self._connected.wait()
                while not self.nc.is_connected:
                    # It has just been lost, and the client has not told us yet.
                    await asyncio.sleep(_PAUSE_S)
                    await self._connected.wait()
        except TimeoutError as exc:
            raise Unreachable(
                f"the broker at {self.address.url} has not been reachable for {wait_s:g} s",
                hint="is it running? `hark status`; clients reconnect by themselves",
            ) from exc

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Arrival:
        """Send a request and return its answer.

        Waits for the broker to be reachable first, within the same timeout, so nothing is left in a buffer to be
        sent later. When the connection breaks before the answer, the request may have been carried out or not.
        Where very many ask at once, the time before its turn does not count.

        Raises:
            ConnectionLost: the connection broke while waiting; ask again if asking twice is harmless.
            BusUnavailable: no answer in ``timeout_s`` (default ``config.request_timeout_s``), or nobody there.
            EventTooLarge: larger than the broker takes.
        """
        async with self._turnstile:
            return await self._request(subject, payload, headers=headers, timeout_s=timeout_s)

    async def _request(
        self,
        subject: str,
        payload: bytes,
        *,
        headers: Mapping[str, str] | None,
        timeout_s: float | None,
    ) -> Arrival:
        timeout_s = self.config.request_timeout_s if timeout_s is None else timeout_s
        if not self.nc.is_connected or not self._connected.is_set():
            await self.connected(timeout_s)
        size = len(payload) + (sum(len(k) + len(v) + 4 for k, v in headers.items()) + 14 if headers else 0)
        if size > self.nc.max_payload:
            raise EventTooLarge(subject, size_bytes=size, limit_bytes=self.nc.max_payload)
        if self._wire is None:
            raise BusUnavailable("the connection has not been entered")
        loop = asyncio.get_running_loop()
        self._next_token += 1
        token = f"{self._next_token:x}"
        answer: asyncio.Future[Arrival] = loop.create_future()
        self._waiting[token] = answer
        limit = loop.call_later(
            timeout_s, self._time_out, answer, subject, timeout_s, loop.time() + timeout_s
        )
        try:
            # Past the client's own publish and subscription: its queues and tasks are three more turns of the loop.
            lines = header_lines(headers) if headers else ""
            self._wire.send(frame(subject, f"{self._inbox}.{token}", lines, payload))
            msg = await answer
        finally:
            limit.cancel()
            self._waiting.pop(token, None)
        if not msg.data and msg.status == 503:
            raise NotReady(
                f"nobody answers on {subject}",
                hint="the broker may have no JetStream (start it with -js), or it may still be starting",
            )
        return msg

    def _time_out(
        self, answer: asyncio.Future[Arrival], subject: str, timeout_s: float, due: float, late: int = 0
    ) -> None:
        if answer.done():
            return
        loop = asyncio.get_running_loop()
        if loop.time() - due > _LATE_S and late < _TIMES_LATE:
            # The loop stood still: it may lie in the socket, and is read in the turns to come.
            due = loop.time() + _LATE_S
            loop.call_at(due, self._time_out, answer, subject, timeout_s, due, late + 1)
            return
        answer.set_exception(NoAnswer(f"the broker did not answer on {subject} within {timeout_s:g} s"))

    def _on_answer(self, msg: Arrival) -> None:
        self._heard += 1
        waiting = self._waiting.get(msg.subject[self._inbox_len :])
        if waiting is not None and not waiting.done():
            waiting.set_result(msg)

    def _fail_waiting(self, why: str) -> None:
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ConnectionLost(f"{why} while an answer was awaited"))

    async def insist(
        self,
        subject: str,
        payload: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> JsonObject:
        """Ask JetStream until there is an answer. Only for what may be asked twice (or carries a ``Nats-Msg-Id``).

        Where very many ask at once, the time before its turn does not count.

        Raises:
            ApiError: it refused. BusUnavailable: no answer in ``timeout_s``. EventTooLarge: see ``request``.
        """
        timeout_s = self.config.request_timeout_s if timeout_s is None else timeout_s
        async with self._turnstile:
            heard = self._heard
            try:
                return await self._insist(subject, payload, headers, timeout_s)
            except BusUnavailable as exc:
                if self._heard == heard:
                    # Let nobody in line try in vain what this one has tried.
                    why = str(exc)
                    self._turnstile.turn_away(lambda: Unreachable(why))
                raise

    async def _insist(
        self, subject: str, payload: bytes, headers: Mapping[str, str] | None, timeout_s: float
    ) -> JsonObject:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        heard: BusUnavailable | None = None
        while True:
            # A cluster that has no leader yet drops requests without a word, so no try takes all of the time.
            left_s = max(0.001, deadline - loop.time())
            await self.connected(left_s)
            try_s, began_at = min(_TRY_S, left_s), loop.time()
            try:
                msg = await self._request(subject, payload, headers=headers, timeout_s=try_s)
                return read_api_answer(subject, msg.data)
            except NoAnswer as exc:
                # What a try took beyond its time is what the loop stood still for, or was too busy to read: that counts
                # for nobody.
                deadline += max(0.0, loop.time() - began_at - try_s)
                if loop.time() + _PAUSE_S >= deadline or self._closing:
                    # The last try may have had a moment only: what an earlier one heard says more.
                    raise heard or NoAnswer(
                        f"the broker did not answer on {subject} within {timeout_s:g} s"
                    ) from exc
            except (ConnectionLost, NotReady, Unreachable) as exc:
                # Unreachable: it was there a moment ago, when we asked whether it is.
                heard = exc
                if loop.time() + _PAUSE_S >= deadline or self._closing:
                    raise
            except ApiError as exc:
                if exc.err_code != _STILL_AT_IT or loop.time() + _PAUSE_S >= deadline:
                    raise
            await asyncio.sleep(_PAUSE_S)

    async def api(
        self, verb: str, body: Mapping[str, Any] | None = None, *, timeout_s: float | None = None
    ) -> JsonObject:
        """Ask JetStream's API (``verb`` such as ``STREAM.INFO.HARK``) and return its answer; see ``insist``."""
        payload = orjson.dumps(body) if body is not None else b""
        return await self.insist(f"$JS.API.{verb}", payload, timeout_s=timeout_s)

    async def subscribe(
        self, subject: str, callback: Callable[[Msg], Any], *, most_waiting: int = 524_288
    ) -> Subscription:
        """Subscribe, ``callback`` a coroutine function run for one message after the other."""
        with translated(f"subscribe to {subject}"):
            return await self.nc.subscribe(
                subject, cb=callback, pending_msgs_limit=most_waiting, pending_bytes_limit=-1
            )

    async def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription and wait for its task; nothing happens if it has ended."""
        task: asyncio.Task[None] | None = subscription._wait_for_msgs_task
        if not self.nc.is_closed and not subscription._closed:
            with translated("unsubscribe"):
                await subscription.unsubscribe()
        if task is not None and task is not asyncio.current_task():
            task.cancel()
            await asyncio.wait({task}, timeout=2.0)

    async def flush(self) -> None:
        """Return once the broker has read all that was written before, subscriptions included.

        The client writes its PING past what still waits in its buffer, so one answer says nothing of that; once the
        buffer has been empty, the next answer does.
        """
        limit_s = math.ceil(self.config.request_timeout_s)
        for _ in range(100):  # the client's task that empties it has its turn in one or two
            if not self.nc.pending_data_size:
                break
            await asyncio.sleep(0)
        while self.nc.pending_data_size:  # the socket is full
            await self.nc.flush(limit_s)
        await self.nc.flush(limit_s)

    def new_inbox(self) -> str:
        """Return a subject nobody else listens on."""
        return self.nc.new_inbox()


def read_api_answer(what: str, raw: bytes) -> JsonObject:
    """Return the JSON of an answer of JetStream.

    Raises:
        ApiError: it is a refusal. NotReady: JetStream cannot act now (no leader, shutting down).
        StreamFull: what it should be stored in holds as much as it may.
    """
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as exc:
        raise BusUnavailable(
            f"the broker answered {what} with something that is not JSON: {raw[:80]!r}"
        ) from exc
    if not isinstance(value, dict):
        raise BusUnavailable(f"the broker answered {what} with {raw[:80]!r}")
    error = value.get("error")
    if isinstance(error, dict):
        code, err_code = int(error.get("code", 0)), int(error.get("err_code", 0))
        text = str(error.get("description", ""))
        if Refusal(code, err_code, text).is_full:
            raise StreamFull(what, why=text)
        if code == 503:
            raise NotReady(f"JetStream cannot do {what} now: {text} (error {err_code})")
        raise ApiError(what, code=code, err_code=err_code, description=text)
    return value
