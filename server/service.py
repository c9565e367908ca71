"""The composition root: every part of Hark made and wired here, and nowhere else.

``Service`` is one process of a deployment of Hark: the roles it was given, on an embedded broker or an external one.
Parts start together; each is kept running by the supervisor. Stopping goes from the doors inwards: first HTTP and
triggers take no new work, then rules and dispatcher, then workers drain, then actions and messages go out, and last
the read model, the bus and the broker.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import anyio
from anyio import AsyncContextManagerMixin, to_thread

from ..bus import Bus, EmbeddedBroker, LateValues, SecretStore, secret_key
from ..clock import SYSTEM_CLOCK, Clock
from ..errors import BusUnavailable, DefinitionError, HarkError, LogRewound, UnavailableError
from ..vocabulary import new_id
from .access import AccessKeys, is_loopback
from .collecting import begin_collecting, spaced_collections
from .definitions import DefinitionsFeed
from .door import bound
from .lean import import_httpx
from .log_line import hide_in_logs
from .open_files import raise_limit
from .roles import ALL_ROLES, Role
from .supervisor import Part, Supervisor

if TYPE_CHECKING:
    from ..bus import BrokerAddress
    from ..config import Settings
    from ..engine.dispatching.control import Control
    from ..notifications import AckLinks, Notifier
    from ..storage.progress import Progress
    from .context import ServerContext
    from .web import HttpServer

__all__ = ["Service", "serve"]

log = logging.getLogger("hark.service")

_THREADS_S = 5.0
_SWITCH_S = 0.0005
_ANEW_S = 1.0
_LULL_S = 0.002
STOP_DOORS, STOP_DECIDERS, STOP_WORKERS, STOP_EFFECTS, STOP_READERS = range(5)
"""The order of stopping."""


class Service(AsyncContextManagerMixin):
    """One process of Hark. Entered means ready; left means gone.

    Args:
        roles: what this process does.
        config: a hark.yaml or folder to apply, and to apply again when it changes; None is no configuration.
        awaits_config: it need not be there yet; it is applied once it is.
        worker_apart: beside other roles, the worker runs in a thread of its own, so that flows hold up nothing else. A
            ``clock`` must do for two threads then.

    Raises (on entering):
        AlreadyHeld: another process has a broker on this home.
        BusUnavailable, BrokerStartFailed: there is no broker.
        DefinitionError: a setting is wrong, such as an open server on a public address.
        ManifestInvalid: the configuration has faults, and nothing of an earlier one is live.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        roles: frozenset[Role] = ALL_ROLES,
        config: Path | None = None,
        awaits_config: bool = False,
        worker_apart: bool = False,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.settings, self.roles, self.config, self.clock = settings, roles, config, clock
        self._awaits_config, self._worker_apart = awaits_config, worker_apart
        self.home = settings.home_path
        self.name = f"{socket.gethostname()}-{os.getpid()}-{new_id()[-6:]}"
        self.url = ""
        self.took_s = 0.0
        self._bus: Bus | None = None
        self._broker: EmbeddedBroker | None = None
        self._supervisor: Supervisor | None = None
        self._control: Control | None = None
        self.context: ServerContext | None = None
        self._http: HttpServer | None = None
        self._folded: Progress | None = None
        self.links: AckLinks | None = None

    @property
    def bus(self) -> Bus:
        """The bus. Only while entered."""
        if self._bus is None:
            raise RuntimeError("the service has not been entered")
        return self._bus

    @property
    def parts(self) -> Supervisor:
        """The running parts. Only while entered."""
        if self._supervisor is None:
            raise RuntimeError("the service has not been entered")
        return self._supervisor

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, None]:
        began = time.monotonic()
        async with AsyncExitStack() as stack:
            warming = await stack.enter_async_context(anyio.create_task_group())
            # Importing is a third of a second of pure CPU; most of the broker's start is waiting for it.
            imported = anyio.Event()

            async def import_rooms() -> None:
                await to_thread.run_sync(self._import_rooms)
                imported.set()

            warming.start_soon(import_rooms)
            address = await self._address(stack)
            server = self.settings.server
            # Behind the home, which knows better who has it, and before all that takes time.
            door = stack.enter_context(bound(server.host, server.port)) if Role.SERVER in self.roles else None
            bus = Bus(
                address, self.settings.bus, name=f"hark {','.join(sorted(self.roles))}", clock=self.clock,
                reads_apart=bool(self.roles - {Role.WORKER}), lull_s=_LULL_S,
            )  # fmt: skip
            self._bus = await stack.enter_async_context(bus)
            stack.callback(self._forget)
            # Of two threads that import a package and a module of it at once, one may get what is not finished.
            await imported.wait()
            await self._wire(stack, door)
            self.took_s = time.monotonic() - began
            log.info(
                "hark.ready",
                extra={
                    "roles": ",".join(sorted(self.roles)), "url": self.url or None, "home": str(self.home),
                    "broker": bus.info.version, "took_s": round(self.took_s, 2),
                },
            )  # fmt: skip
            try:
                yield self
            finally:
                # Not by cancelling the group of what warms up: all parts run within it, and stop in order.
                log.info("hark.stopping")

    async def load(self) -> None:
        """Load what a start does without, the framework of most HTTP routes above all. Only while entered."""
        if self._http is not None:
            await self._http.load()

    def anew(self) -> Service:
        """Return a service like this one, to be entered once this one has been left."""
        return Service(
            self.settings, roles=self.roles, config=self.config, awaits_config=self._awaits_config,
            worker_apart=self._worker_apart, clock=self.clock,
        )  # fmt: skip

    def _forget(self) -> None:
        self._http = None
        self._bus = self._broker = self._supervisor = self._control = self.context = None

    def _import_rooms(self) -> None:
        """Import what will be needed, in a thread, while the broker starts."""
        import_httpx()
        if Role.SERVER in self.roles:
            from . import metrics, web  # noqa: F401
        from ..automations.acting import outbox  # noqa: F401
        from ..automations.folding import engine  # noqa: F401
        from ..engine.workers import worker  # noqa: F401
        from ..notifications import Notifier  # noqa: F401
        from ..storage import apart  # noqa: F401
        from ..triggers import receiver, scheduler  # noqa: F401

    async def _address(self, stack: AsyncExitStack) -> BrokerAddress:
        """Return the broker to use: the external one that was named, the one already on this home, or a new one."""
        from ..bus import locate_broker

        settings = self.settings
        if settings.nats_url is not None:
            found = locate_broker(settings)
            assert found is not None
            return found
        if self.roles == ALL_ROLES or Role.SERVER in self.roles:
            broker = EmbeddedBroker(self.home, settings.bus, program=settings.nats_server)
            self._broker = await stack.enter_async_context(broker)
            return broker.address
        # A worker beside a `hark up` of this home uses its broker.
        found = locate_broker(settings)
        if found is None:
            raise DefinitionError(
                f"a process with the role {', '.join(sorted(self.roles))} needs a broker, and none runs on {self.home}",
                hint="name one with --nats or HARK_NATS_URL, or start `hark up` on this home first",
            )
        return found

    # --- wiring ---------------------------------------------------------------------------------------

    async def _wire(self, stack: AsyncExitStack, door: socket.socket | None) -> None:
        from ..automations.acting.approval import ApprovalLinks
        from ..engine.dispatching.control import Control
        from ..notifications.ack import AckLinks

        settings, bus = self.settings, self.bus
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        given = settings.secret_key.get_secret_value() if settings.secret_key else None
        secrets = SecretStore(bus, secret_key(self.home, given))
        late = LateValues(bus, secrets)

        def hide(text: str) -> str:
            # The redactor grows with each value handed out, so it is asked for anew for every line.
            return late.redactor.redact(text)

        stack.callback(hide_in_logs(hide))
        control = self._control = Control(bus, self.clock)
        self.links = AckLinks(secret_key(self.home, given), base_url=self._public_url())
        self.approval_links = ApprovalLinks(secret_key(self.home, given), base_url=self._public_url())
        parts: list[Part] = []
        keys = AccessKeys(bus, extra_key=settings.api_key.get_secret_value() if settings.api_key else None)
        if Role.SERVER in self.roles:
            await stack.enter_async_context(keys)
            self._refuse_open_door(keys)
        if self.roles & {Role.SERVER, Role.AUTOMATIONS}:
            parts.append(Part("notifier", self._notifier(late), stop_rank=STOP_EFFECTS, stop_s=20))
        if Role.SERVER in self.roles:
            parts += self._server_parts(late)
        if Role.DISPATCHER in self.roles:
            parts += self._dispatcher_parts(control)
        if Role.AUTOMATIONS in self.roles:
            parts += self._automation_parts(control, late)
        if Role.WORKER in self.roles:
            parts += self._worker_parts()
        if self.config is not None and Role.SERVER in self.roles:
            from .reload import ConfigFeed

            feed = ConfigFeed(bus, self.config)
            # Before the parts: once the rule engine is ready, every rule of the configuration is in force.
            if not (self._awaits_config and not self.config.exists()):
                await feed.apply()
            parts.append(Part("config", lambda: feed, stop_rank=STOP_DOORS))
        supervisor = self._supervisor = Supervisor(parts, clock=self.clock)
        if door is not None:
            context = await self._open_server(stack, keys=keys, secrets=secrets, control=control)
            await stack.enter_async_context(supervisor)
            await self._open_door(stack, context, door)
        else:
            await stack.enter_async_context(supervisor)

    def _public_url(self) -> str:
        """Return what people reach a server by, for links; a server that is about to start corrects it."""
        from .address import find_api

        return self.settings.server.public_url or find_api(self.settings)

    def _refuse_open_door(self, keys: AccessKeys) -> None:
        host = self.settings.server.host
        if keys.is_open and not is_loopback(host):
            raise DefinitionError(
                f"listening on {host} without an access key would let everyone in",
                hint="set HARK_API_KEY, or start on 127.0.0.1 and make a key with `hark keys create NAME` first",
            )

    def _notifier(self, late: LateValues) -> Callable[[], Any]:
        def make() -> Any:
            from ..notifications import Notifier

            return Notifier(self.bus, late, self.settings.notifications, self.clock)

        return make

    def _server_parts(self, late: LateValues) -> list[Part]:
        from ..storage.progress import Progress

        self._folded = Progress()

        def projector() -> Any:
            from ..storage.apart import Projection

            return Projection(
                self.bus, self.database, self.settings.storage, clock=self.clock, progress=self._folded
            )

        def webhooks() -> Any:
            from ..triggers.receiver import WebhookReceiver

            return WebhookReceiver(self.bus, late, self.settings.triggers, clock=self.clock)

        def sources() -> Any:
            from ..triggers.listener import SourceListener

            return SourceListener(self.bus, self.settings.triggers, clock=self.clock)

        return [
            Part("projector", projector, stop_rank=STOP_READERS),
            Part("sources", sources, stop_rank=STOP_DOORS),
            Part("webhooks", webhooks, stop_rank=STOP_DOORS),
        ]

    def _dispatcher_parts(self, control: Control) -> list[Part]:
        def dispatcher() -> Any:
            from ..engine.dispatching.dispatcher import Dispatcher

            return Dispatcher(self.bus, self.settings.engine, self.clock, name=self.name)

        def sweep() -> Any:
            from ..bus.sweep import ObjectSweep

            return ObjectSweep(self.bus.objects)

        def scheduler() -> Any:
            from ..triggers.scheduler import Scheduler
            from .starter import EngineStarter

            @asynccontextmanager
            async def both() -> AsyncGenerator[Scheduler, None]:
                async with (
                    EngineStarter(control, self.bus, self.clock) as starter,
                    Scheduler(
                        self.bus, starter, self.settings.triggers, clock=self.clock, holder=self.name
                    ) as scheduler,
                ):
                    yield scheduler

            return both()

        def definitions() -> Any:
            return DefinitionsFeed(self.bus, holder=self.name, clock=self.clock)

        def backfiller() -> Any:
            from ..triggers.backfiller import Backfiller
            from .backfill import ControlBackfillStarter

            starter = ControlBackfillStarter(control, self.clock)
            return Backfiller(self.bus, starter, clock=self.clock, holder=self.name)

        return [
            Part("dispatcher", dispatcher, stop_rank=STOP_DECIDERS),
            Part("sweep", sweep, stop_rank=STOP_READERS),
            Part("scheduler", scheduler, stop_rank=STOP_DOORS),
            Part("backfiller", backfiller, stop_rank=STOP_DOORS),
            Part("definitions", definitions, stop_rank=STOP_READERS),
        ]

    def _automation_parts(self, control: Control, late: LateValues) -> list[Part]:
        from ..automations.folding.forebears import Forebears
        from ..automations.folding.handover import Handover

        # Whose broker is in this home holds its lock from before any part begins until all have ended.
        handover = Handover(Forebears(self.home if self._broker is not None else None))

        def rules() -> Any:
            from ..automations.folding.engine import RuleEngine

            return RuleEngine(
                self.bus, self.settings.automations, self.clock, name=self.name, handover=handover
            )

        def sinks() -> Any:
            from ..automations.acting.forwarder import Forwarder

            return Forwarder(self.bus, late, self.settings.automations, self.clock)

        def waker() -> Any:
            from ..automations.waker import Waker

            return Waker(self.bus, self.clock, name=self.name)

        def outbox() -> Any:
            from ..automations.acting.outbox import Outbox
            from ..automations.acting.perform import Performers

            config = self.settings.automations

            @asynccontextmanager
            async def both() -> AsyncGenerator[Outbox, None]:
                performers = Performers(
                    self.bus, control, late, config, notifier=self._running_notifier, clock=self.clock,
                    links=self.approval_links,
                )  # fmt: skip
                outbox = Outbox(self.bus, performers, config, self.clock, handover=handover)
                async with performers, outbox as box:
                    yield box

            return both()

        def router() -> Any:
            from ..automations.matching.language import WhereLanguage
            from ..notifications.router import Router

            return Router(
                self.bus,
                self._running_notifier,
                WhereLanguage(),
                self.clock,
                vault=late,
                links=self.links,
                name=self.name,
            )

        return [
            # Stops before the notifier: what it has decided and not sent is put down and sent by the next.
            Part("router", router, stop_rank=STOP_DECIDERS),
            Part("rules", rules, stop_rank=STOP_DECIDERS),
            Part("waker", waker, stop_rank=STOP_DECIDERS),
            Part("outbox", outbox, stop_rank=STOP_EFFECTS, stop_s=15),
            Part("sinks", sinks, stop_rank=STOP_EFFECTS, stop_s=15),
        ]

    def _running_notifier(self) -> Notifier:
        from ..errors import UnavailableError

        found = self.parts.running("notifier")
        if found is None:
            raise UnavailableError("the notifier is not running now")
        notifier: Notifier = found
        return notifier

    def _worker_parts(self) -> list[Part]:
        def worker() -> Any:
            if self._worker_apart and self.roles > {Role.WORKER}:
                from .apart_worker import ApartWorker

                return ApartWorker(self.bus.address, self.settings, clock=self.clock)
            from ..engine.workers.worker import Worker

            return Worker(self.bus, self.settings.worker, self.settings.engine, clock=self.clock)

        return [Part("worker", worker, stop_rank=STOP_WORKERS, stop_s=self.settings.worker.drain_s + 15)]

    # --- the server -----------------------------------------------------------------------------------

    @property
    def database(self) -> Path:
        """The file of the read model."""
        return self.home / "hark.sqlite"

    async def _open_server(
        self, stack: AsyncExitStack, *, keys: AccessKeys, secrets: SecretStore, control: Control
    ) -> ServerContext:
        from ..storage import Queries
        from .context import ServerContext
        from .metrics import Metrics

        queries = await stack.enter_async_context(Queries(self.database, progress=self._folded))
        self.context = ServerContext(
            settings=self.settings, bus=self.bus, clock=self.clock, keys=keys, queries=queries, control=control,
            secrets=secrets, services=self.parts, metrics=Metrics(), started_at=self.clock.now(), links=self.links,
            approval_links=self.approval_links, broker=self._broker,
        )  # fmt: skip
        return self.context

    async def _open_door(self, stack: AsyncExitStack, context: ServerContext, door: socket.socket) -> None:
        from .address import announced
        from .metrics import MetricsFeed
        from .web import HttpServer

        await stack.enter_async_context(MetricsFeed(self.bus, context.metrics))
        server = HttpServer(context, self.settings.server, door)
        await stack.enter_async_context(server)
        self._http = server
        self.url = context.url
        if self.links is not None and self.settings.server.public_url is None:
            self.links.base_url = self.approval_links.base_url = self.url
        context.is_public = not is_loopback(self.settings.server.host)
        stack.enter_context(announced(self.home, self.url))


def serve(service: Service, *, announce: Callable[[str], None]) -> int:
    """Run a service until it is asked to stop (Ctrl-C, TERM); return the exit code.

    A second Ctrl-C while it is stopping ends the process at once.
    """
    options = {"use_uvloop": find_spec("uvloop") is not None}
    code: int = anyio.run(_serve, service, announce, backend_options=options)
    return _without_threads(code)


def _without_threads(code: int) -> int:
    """Return ``code``, or end the process at once if threads that nobody stopped would keep it from ending.

    A service that has crashed has to be gone, so that whoever watches it starts it again.
    """
    deadline = time.monotonic() + _THREADS_S
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                log.error("hark.thread_left", extra={"name_of_thread": thread.name})
                logging.shutdown()
                os._exit(code or 1)
    for handler in logging.getLogger().handlers:
        handler.flush()
    return code


def _end_by_force(limit_s: float) -> None:
    """End this process if it is still there in ``limit_s`` seconds.

    Where the worker runs in this very loop, a flow that swallows its cancellation does too, and nothing but the end of the
    process stops it. That is what kill -9 does, which everything recovers from: the run is taken up by another worker.
    """

    def end() -> None:
        log.error("hark.stopped_by_force", extra={"after_s": limit_s})
        logging.shutdown()
        os._exit(1)

    timer = threading.Timer(limit_s, end)
    timer.daemon = True
    timer.start()


async def _serve(service: Service, announce: Callable[[str], None]) -> int:
    import signal

    asked, is_up, was_up = anyio.Event(), False, False

    async def run(service: Service) -> None:
        nonlocal is_up, was_up
        async with service:
            is_up = was_up = True
            if service.url:
                announce(f"Hark is ready at {service.url} (home {service.home})")
            if service.context is not None and service.context.keys.is_open:
                announce("Access is open to everyone on this machine; `hark keys create NAME` closes it.")
            try:
                await service.load()
            except UnavailableError as exc:  # whoever asks first loads it
                log.warning("hark.not_loaded", extra={"error": str(exc)})
            begin_collecting()
            with spaced_collections():
                await asked.wait()

    async def listen(signals: Any, starting: anyio.CancelScope) -> None:
        async for _ in signals:
            if asked.is_set():
                log.warning("hark.killed", extra={"why": "asked to stop a second time"})
                logging.shutdown()
                os._exit(130)
            asked.set()
            _end_by_force(service.settings.server.stop_limit_s)
            if not is_up:
                starting.cancel("asked to stop while starting")

    # Threads that fold or compress must not keep the loop waiting for Python's lock: 5 ms a time would be the rule. It is that
    # again while a worker has a thread here (``ApartWorker``).
    sys.setswitchinterval(_SWITCH_S)
    raise_limit()
    try:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with anyio.create_task_group() as tg:
                with anyio.CancelScope() as starting:
                    tg.start_soon(listen, signals, starting)
                    while True:
                        try:
                            await run(service)
                        except Exception as exc:
                            if not was_up or asked.is_set() or not _is_of_the_broker(exc):
                                raise
                            # Another log, or an older one that was put back: what is known here is no longer true.
                            log.error("hark.begins_anew", extra={"error": str(_first(exc))})
                            is_up = False
                        else:
                            break
                        await anyio.sleep(_ANEW_S)
                        service = service.anew()
                tg.cancel_scope.cancel("stopped")
    except BaseExceptionGroup as group:
        known, other = group.split(HarkError)
        if other is not None:
            log.error("hark.crashed", exc_info=other)
            return 1
        if known is not None:
            raise _first(known) from None
    return 0


def _is_of_the_broker(exc: BaseException) -> bool:
    """Return whether all that went wrong is that the broker no longer has what it had."""
    if isinstance(exc, BaseExceptionGroup):
        return all(_is_of_the_broker(one) for one in exc.exceptions)
    return isinstance(exc, LogRewound | BusUnavailable)


def _first(exc: BaseException) -> BaseException:
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc
