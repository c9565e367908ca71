"""Tasks on a Dask cluster: each try is sent to one of its workers, and everything else stays where the flow is.

A thread of this process looks after each task that is on its way, as with processes (``process_runner``): it keeps the retries,
hooks and events, and waits for what the worker says. What happens on the worker is in ``dask_worker``.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self

from anyio import to_thread

from ...errors import DefinitionError, ProcessDied, RunTimedOut
from ...vocabulary import new_id
from ..futures import TaskFuture
from ..signals import Interrupted
from ..task_runners import TaskRunner, ThreadPoolTaskRunner
from ..writing import unpickled
from .far_wait import FarWait, FarWaits
from .process_runner import log_again
from .shipment import packed_try, unpacked_outcome

if TYPE_CHECKING:
    from ..calls.task_call import TaskCall
    from .dask_worker import Answer

__all__ = ["DaskTaskRunner"]

log = logging.getLogger(__name__)

_STOP_S = 5.0
"""How long stopping waits for the workers of a cluster to hear of it."""

ON_THEIR_WAY = 256
"""Tries that the cluster is given at once. Each takes a thread here that waits; the cluster puts them in its own order."""

LARGE_BYTES = 1 << 20
_LISTENING = "hark-listening"
_SAY_AGAIN_S = 0.5


class DaskTaskRunner(ThreadPoolTaskRunner):
    """Runs tasks on the workers of a Dask cluster: one that runs (``address``, ``cluster``), or one of its own.

    Functions, arguments and results travel pickled, as with ``ProcessPoolTaskRunner``; Hark has to be installed on the workers,
    and those of a tracked run speak to its broker. A task whose time is up, or whose run is cancelled, is stopped between two
    of its Python instructions, and left behind where it makes none. A try whose worker died, and then the others it
    was moved to (see ``allowed-failures`` of Dask), crashes.

    Args:
        cluster: a cluster object that is already there.
        address: of a scheduler.
        cluster_class: what to make a cluster of for each flow run, or its dotted name; default: ``distributed.LocalCluster``.
        cluster_kwargs, client_kwargs: passed on to it, and to ``distributed.Client``.
        adapt_kwargs: passed on to ``cluster.adapt``: ``{"minimum": 1, "maximum": 10}``.
    Raises:
        ValueError: an address or cluster is given together with what a cluster of its own would be made of.
    """

    def __init__(
        self,
        cluster: Any = None,
        address: str | None = None,
        cluster_class: str | Callable[..., Any] | None = None,
        cluster_kwargs: Mapping[str, Any] | None = None,
        adapt_kwargs: Mapping[str, Any] | None = None,
        client_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if address is not None and (cluster is not None or cluster_class or cluster_kwargs or adapt_kwargs):
            raise ValueError(
                "an address says which cluster to use; leave out cluster, cluster_class, cluster_kwargs and adapt_kwargs"
            )
        if cluster is not None and (cluster_class or cluster_kwargs):
            raise ValueError("a cluster is there already; leave out cluster_class and cluster_kwargs")
        super().__init__(ON_THEIR_WAY)
        self.address, self.cluster, self.cluster_class = address, cluster, cluster_class
        self.cluster_kwargs = dict(cluster_kwargs or {})
        self.adapt_kwargs = dict(adapt_kwargs or {})
        self.client_kwargs = dict(client_kwargs or {})
        self._connecting = threading.Lock()
        self._client: Any = None
        self._own_cluster: Any = None
        self._sent: dict[Any, str] = {}
        """What is on the cluster now, and by which ticket it is stopped there."""
        self._waits: dict[str, FarWaits] = {}
        """What those of them may be told to wait for."""
        self._waiting_on: dict[str, set[str]] = {}
        """Workers of the cluster that are listened to, and which of those tries wait there."""
        self._listening: dict[str, asyncio.Event] = {}
        """Those of them that we are not sure to hear of yet; set once we do."""

    def duplicate(self) -> Self:
        return type(self)(**self._arguments())

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (type(self), self._arguments())

    def _arguments(self) -> dict[str, Any]:
        return {
            "cluster": self.cluster, "address": self.address, "cluster_class": self.cluster_class,
            "cluster_kwargs": self.cluster_kwargs, "adapt_kwargs": self.adapt_kwargs, "client_kwargs": self.client_kwargs,
        }  # fmt: skip

    def _settings(self) -> tuple[Any, ...]:
        return tuple(repr(value) for value in self._arguments().values())

    # --- the cluster ----------------------------------------------------------------------------------

    @property
    def client(self) -> Any:
        """The ``distributed.Client``, connected; with it, the cluster is started if it is one of our own."""
        with self._connecting:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> Any:
        distributed = _distributed()
        from .dask_worker import WAITS, HarkPlugin

        where: Any = self.address if self.address is not None else self.cluster
        if where is None:
            where = self._own_cluster = self._make_cluster(distributed)
        try:
            if self.adapt_kwargs:
                where.adapt(**self.adapt_kwargs)
            client = distributed.Client(where, **{"set_as_default": False, **self.client_kwargs})
            client.register_plugin(HarkPlugin())
            client.subscribe_topic(WAITS, self._on_waits)
        except BaseException:
            self._close_cluster()
            raise
        return client

    def _make_cluster(self, distributed: Any) -> Any:
        kind: Any = self.cluster_class or distributed.LocalCluster
        if isinstance(kind, str):
            module, _, name = kind.rpartition(".")
            try:
                kind = getattr(import_module(module), name)
            except (ImportError, AttributeError, ValueError) as exc:
                raise DefinitionError(f"{self.cluster_class!r} is no class of clusters: {exc}") from exc
        # A free port for its page: two flows at once would want the same one.
        given = {"dashboard_address": ":0"} if kind is distributed.LocalCluster else {}
        return kind(**{**given, **self.cluster_kwargs})

    def _close_cluster(self) -> None:
        cluster, self._own_cluster = self._own_cluster, None
        if cluster is not None:
            cluster.close()

    def _shut(self) -> None:
        """Leave the cluster, and stop it if it is one of our own. Takes a second or so."""
        with self._connecting:
            client, self._client = self._client, None
            if client is not None:
                client.close()
            self._close_cluster()

    # --- tasks ----------------------------------------------------------------------------------------

    def _begin(self, call: TaskCall, future: TaskFuture[Any], context: contextvars.Context) -> None:
        call.elsewhere = self._try
        super()._begin(call, future, context)

    def _try(self, call: TaskCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one try on the cluster; return what it returned, or raise what it raised."""
        data, session = packed_try(call, args, kwargs)
        # New for each try: what Dask still knows under an old key it does not run again.
        ticket = f"{call.task.name}-{new_id()}"
        with self._hearing(call, ticket):
            answer = self._answer(call, data, ticket)
        for record in answer.log:
            log_again(unpickled(record), None if answer.is_logged else session)
        if answer.outcome is None:
            if self.is_interrupted(call):
                raise Interrupted
            raise RunTimedOut(
                f"task {call.task.name!r} timed out after {call.task.timeout_seconds:g} second(s)"
            )
        return unpacked_outcome(answer.outcome)

    def _answer(self, call: TaskCall, data: bytes, ticket: str) -> Answer:
        """Send a packed try to the cluster; return what its worker says once it has ended."""
        from .dask_worker import run_on_worker

        client = self.client
        # Dask takes large things with the data of tasks, and warns of them in the description of one.
        shipped = client.scatter(data, hash=False) if len(data) > LARGE_BYTES else data
        with self._lock:
            if self.is_interrupted(call):
                raise Interrupted
            sent = client.submit(
                run_on_worker, shipped, call.task.timeout_seconds, ticket, key=ticket, pure=False
            )
            self._sent[sent] = ticket
        try:
            answer: Answer = sent.result()
        except Exception as exc:
            # Whatever the task itself raises is in the answer.
            if self.is_interrupted(call):
                raise Interrupted from None
            raise ProcessDied(
                f"the Dask cluster did not bring the try to its end: {type(exc).__name__}: {exc}",
                run_id=call.run.id,
            ) from exc
        finally:
            with self._lock:
                self._sent.pop(sent, None)
        return answer

    # --- long waits -----------------------------------------------------------------------------------

    @contextmanager
    def _hearing(self, call: TaskCall, ticket: str) -> Generator[None]:
        """Hear, while inside, what a try waits for on the cluster."""
        with FarWaits(call) as waits:
            self._waits[ticket] = waits
            try:
                yield
            finally:
                del self._waits[ticket]
                for tickets in [*self._waiting_on.values()]:
                    tickets.discard(ticket)

    # These are called in the client's loop.

    def _on_waits(self, event: tuple[float, Any]) -> None:
        """Hear of a try that waits, or goes on; of those of other clients, too."""
        told = event[1]
        ticket, worker = told["ticket"], told["worker"]
        client, waits = self._client, self._waits.get(ticket)
        if client is None or waits is None:
            return
        if worker not in self._waiting_on:
            self._waiting_on[worker] = set()
            # A try whose worker dies is begun anew on another, and nobody says so.
            client.subscribe_topic(worker, lambda event: self._on_worker(worker, event))
            client.loop.add_callback(self._make_sure, client, worker)
        if told["waits"]:
            self._waiting_on[worker].add(ticket)
        else:
            self._waiting_on[worker].discard(ticket)
        waits.hear([FarWait(*one) for one in told["waits"]])

    def _on_worker(self, worker: str, event: tuple[float, Any]) -> None:
        """Hear what becomes of a worker on which tries wait."""
        action = event[1].get("action") if isinstance(event[1], dict) else None
        if action == _LISTENING and worker in self._listening:
            self._listening[worker].set()
        elif action == "remove-worker":
            for ticket in self._waiting_on.pop(worker, set()):
                if (waits := self._waits.get(ticket)) is not None:
                    waits.hear(())

    async def _make_sure(self, client: Any, worker: str) -> None:
        """See whether a worker has died before we were listened to: by what was said of it, read once we hear what is."""
        hears = self._listening.setdefault(worker, asyncio.Event())
        try:
            while not hears.is_set():
                # What we ask to hear goes another way than what we say, so that may be there first: then it is said again.
                await client.scheduler.log_event(topic=worker, msg={"action": _LISTENING})
                with suppress(TimeoutError):
                    async with asyncio.timeout(_SAY_AGAIN_S):
                        await hears.wait()
            said = [one for one in await client.scheduler.events(topic=worker) if isinstance(one[1], dict)]
        except (OSError, RuntimeError) as exc:  # the cluster is gone, or we have left it
            log.debug("dask.not_listening", extra={"worker": worker, "error": str(exc)})
            return
        finally:
            self._listening.pop(worker, None)
        lives = [one for one in said if one[1].get("action") in ("add-worker", "remove-worker")]
        if lives:
            self._on_worker(worker, lives[-1])

    # --- the end --------------------------------------------------------------------------------------

    def stop(self, *, interrupt: bool = False) -> None:
        # Not the threads: each of them waits for the cluster, and hears from it.
        with self._lock:
            TaskRunner.stop(self, interrupt=interrupt)
            sent = dict(self._sent) if interrupt else {}
        if not sent:
            return
        from .dask_worker import interrupt as stop_there

        client = self._client

        def tell() -> None:
            # First where they run, which frees places there: those that come next must know already that they may not begin.
            client.run(stop_there, sorted(sent.values()), on_error="ignore")
            client.cancel(list(sent), force=True)

        # A worker that hangs answers never, and this may be the loop of many flows.
        telling = threading.Thread(target=tell, name="hark-dask-stop", daemon=True)
        telling.start()
        telling.join(_STOP_S)
        if telling.is_alive():
            log.warning("dask.workers_silent", extra={"tasks": len(sent), "waited_s": _STOP_S})

    def drain(self, limit_s: float | None = None) -> None:
        super().drain(limit_s)
        if not self.unfinished():
            self._shut()

    async def drain_async(self, limit_s: float | None = None) -> None:
        await super().drain_async(limit_s)
        if not self.unfinished():
            # In a thread, since the loop has others to serve than this flow.
            await to_thread.run_sync(self._shut)

    def close(self) -> None:
        if self.unfinished():
            self.stop(interrupt=True)
        self._shut()
        super().close()


def _made(kind: type[DaskTaskRunner], arguments: dict[str, Any]) -> DaskTaskRunner:
    return kind(**arguments)


def _distributed() -> Any:
    try:
        import distributed  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as exc:
        raise DefinitionError(
            "DaskTaskRunner needs dask.distributed, which is not installed", hint="pip install 'hark[dask]'"
        ) from exc
    return distributed
