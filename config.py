"""Settings: read once, at start, into one frozen tree. Nothing else reads the environment.

Every field is ``HARK_SECTION__FIELD`` in the environment (``HARK_BUS__SYNC=always``); the root fields are
``HARK_HOME``, ``HARK_CONFIG``, ``HARK_NATS_URL``, ``HARK_API_URL`` and ``HARK_API_KEY``. Unknown names are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = [
    "BusConfig", "EngineConfig", "AutomationsConfig", "NotificationsConfig", "ServerConfig", "Settings",
    "StorageConfig", "TriggersConfig", "WorkerConfig", "environment", "load_settings",
]  # fmt: skip


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BusConfig(_Section):
    """The broker and the streams on it."""

    sync: Literal["always", "1s", "5s", "30s", "2m"] = Field(
        "1s",
        description="how often the embedded broker syncs to disk; 'always' survives a power cut without loss",
    )
    replicas: int = Field(
        1, ge=1, le=5, description="copies of every stream and bucket; 3 on a 3-node cluster"
    )
    credentials: Path | None = Field(None, description="NATS .creds file for an external broker")
    user: str | None = Field(None, description="user name for an external broker")
    password: SecretStr | None = Field(None, description="password for an external broker")
    token: SecretStr | None = Field(None, description="token for an external broker")
    tls_ca: Path | None = Field(None, description="CA certificate that signed the broker's")
    tls_cert: Path | None = Field(None, description="client certificate")
    tls_key: Path | None = Field(None, description="key of the client certificate")
    connect_timeout_s: float = Field(5.0, gt=0, le=300, description="how long to try for a first connection")
    request_timeout_s: float = Field(
        5.0, gt=0, le=300, description="how long to wait for one answer of the broker"
    )
    max_bytes: int = Field(
        8 << 30, ge=1 << 20, description="size of the event log; the oldest events make room"
    )
    max_age_days: float = Field(365.0, gt=0, description="age at which events leave the log")
    logs_max_bytes: int = Field(1 << 30, ge=1 << 20, description="size of the stream of run logs")
    logs_max_age_days: float = Field(14.0, gt=0, description="age at which run logs leave")
    work_max_bytes: int = Field(
        256 << 20,
        ge=1 << 20,
        description="size of the work waiting for workers; then new work is refused for now",
    )
    buckets_max_bytes: int = Field(
        128 << 20,
        ge=1 << 20,
        description="size of each bucket (deployments, rules, secrets …); a full one refuses what is new",
    )
    objects_max_bytes: int = Field(
        4 << 30, ge=1 << 20, description="size of the store of large results; a full one refuses what is new"
    )
    requests_kept: int = Field(
        50,
        ge=1,
        le=1000,
        description="webhook requests kept per webhook, so many accepted and so many refused",
    )
    requests_max_age_s: float = Field(86_400.0, ge=1, description="age at which kept webhook requests leave")
    requests_max_bytes: int = Field(64 << 20, ge=1 << 20, description="size of all kept webhook requests")
    dedup_window_s: float = Field(
        120.0, gt=0, le=86400, description="for how long the broker recognises a repeated id"
    )
    publish_buffer: int = Field(
        50_000, ge=100, description="events a process may have waiting for the broker; then callers wait"
    )
    max_payload: int = Field(
        1 << 20, ge=1 << 16, le=64 << 20, description="largest message of the embedded broker, in bytes"
    )
    fast_ingest: bool = Field(
        True, description="publish in batches where the broker can (nats-server 2.14 and later)"
    )
    schedules: bool = Field(
        True, description="keep far timers in the broker where it can (nats-server 2.12 and later)"
    )


class EngineConfig(_Section):
    """Running flows."""

    ack_wait_s: float = Field(
        30.0, ge=2, le=3600, description="a worker silent for this long has lost its run"
    )
    crash_retries: int = Field(
        3, ge=0, le=100, description="how often a run whose worker died is taken up again"
    )
    flow_retries: int = Field(
        0, ge=0, le=1000, description="how often a flow is tried again that says nothing of `retries`"
    )
    flow_retry_delay_s: float = Field(
        0.0, ge=0, description="after how long, of a flow that says nothing of `retry_delay_seconds`"
    )
    task_retries: int = Field(
        0, ge=0, le=1000, description="how often a task is tried again that says nothing of `retries`"
    )
    task_retry_delay_s: float | list[float] = Field(
        0.0,
        description="after how long, of a task that says nothing of `retry_delay_seconds`; a list: before each try",
    )
    cancel_grace_s: float = Field(
        10.0, ge=0, le=3600, description="between asking a run to stop and killing it"
    )
    suspend_after_s: float = Field(
        30.0, ge=0, description="a wait of a run that lasts longer than this holds no place in a worker"
    )
    inline_result_bytes: int = Field(
        65_536, ge=0, le=1 << 20, description="results up to this size travel in the event"
    )
    persist_results: bool | None = Field(
        None,
        description="what `persist_result` is where neither flow nor task says; unset: recorded in tracked runs",
    )
    result_storage: str | None = Field(
        None,
        description='where results are kept: a URL ("s3://bucket/prefix"), a path, or a saved block ("slug/name"); '
        "unset: the broker",
    )
    result_serializer: str | None = Field(
        None,
        description='how results are written: "pickle", "json", "compressed/pickle", "compressed/json"; '
        "unset: JSON where the value survives that, else pickle",
    )
    log_prints: bool = Field(
        False,
        description="whether `print` of flows and tasks goes to their logs where neither says `log_prints`",
    )
    refresh_cache: bool = Field(
        False,
        description="whether tasks that say nothing of `refresh_cache` run anyway, and keep the new result",
    )
    thread_workers: int = Field(32, ge=1, le=1024, description="threads of the thread-pool task runner")
    track: Literal["auto", "always", "never"] = Field(
        "auto",
        description="whether plain calls are recorded: when a broker is known, always (or fail), or never",
    )

    @field_validator("task_retry_delay_s")
    @classmethod
    def _check_delays(cls, given: float | list[float]) -> float | list[float]:
        # Here, where a person reads it: at a retry it would take the place of what the task failed of.
        delays = given if isinstance(given, list) else [given]
        if len(delays) > 50 or not all(0 <= delay < float("inf") for delay in delays):
            raise ValueError("delays are seconds >= 0, and 50 at most")
        return given


class WorkerConfig(_Section):
    """A worker process."""

    pool: str = Field("default", description="the pool it serves")
    concurrency: int = Field(64, ge=1, le=10_000, description="async runs it holds at once")
    processes: int = Field(2, ge=0, le=256, description="sync runs it holds at once, one warm process each")
    parked: int = Field(
        1_000,
        ge=0,
        le=100_000,
        description="async runs, or runs of background tasks, that wait in memory beside them, without a place",
    )
    parked_processes: int = Field(
        8, ge=0, le=256, description="sync runs that do so, each in a process that lives on"
    )
    warm: int = Field(1, ge=0, le=64, description="idle processes kept ready")
    drain_s: float = Field(30.0, ge=0, description="how long running work may finish when the worker stops")


class TriggersConfig(_Section):
    """Schedules and webhooks."""

    webhook_max_bytes: int = Field(1 << 20, ge=1024, le=64 << 20, description="largest webhook body")
    webhook_kept_bytes: int = Field(
        65_536,
        ge=0,
        le=512 << 10,
        description="most bytes kept of a request's body, to be sent again; 0 keeps no requests",
    )
    webhook_tolerance_s: float = Field(300.0, gt=0, description="largest age of a signed timestamp")
    webhook_dedupe_s: float = Field(
        259_200.0,
        ge=1,
        le=2_592_000,
        description="for how long a repeated delivery of a webhook is recognised; senders try again for up to 3 days",
    )
    webhook_rate_per_s: float = Field(
        500.0, gt=0, description="requests per second of a webhook without a `rate` of its own, per server"
    )
    webhook_rejected_per_s: float = Field(
        1.0,
        gt=0,
        description="`webhook.rejected` events per second and webhook; the others are counted in the next",
    )
    schedule_grace_s: float = Field(
        30.0, ge=0, le=3600, description="how late a slot may be run and still be on time, not caught up"
    )


class AutomationsConfig(_Section):
    """The rule engine and its actions."""

    checkpoint_events: int = Field(2_000, ge=1, description="events between two checkpoints of rule state")
    checkpoint_s: float = Field(
        5.0, gt=0, description="seconds between two checkpoints, when anything changed"
    )
    allowed_lateness_s: float = Field(10.0, ge=0, description="how late an event may be for its window")
    max_causal_depth: int = Field(
        8, ge=1, le=100, description="length of a chain of rules causing rules, after which it stops"
    )
    budget_per_minute: int = Field(
        100, ge=1, description="firings of one rule per minute, after which it is held back"
    )
    action_retries: int = Field(4, ge=0, le=20, description="further tries of a failed action")
    action_deaths: int = Field(
        5,
        ge=1,
        le=1000,
        description="processes that may die, one after the other, while they do an action before it is given up",
    )
    action_timeout_s: float = Field(30.0, gt=0, description="longest time one try of an action may take")
    action_concurrency: int = Field(64, ge=1, le=1000, description="actions in progress at once")
    allow_private_addresses: bool = Field(
        False, description="let `call` reach loopback and private addresses"
    )


class NotificationsConfig(_Section):
    """Telling people."""

    send_timeout_s: float = Field(
        15.0, gt=0, le=300, description="longest time one message to one address may take"
    )
    threads: int = Field(8, ge=1, le=64, description="messages being sent at once")
    give_up_s: float = Field(
        25.0,
        gt=0,
        le=3600,
        description="longest time for one message at one address, all tries together; less than an action may take",
    )
    retries: int = Field(
        2, ge=0, le=10, description="further tries at an address before its message counts as failed"
    )
    backoff_s: float = Field(
        1.0, gt=0, le=60, description="ceiling of the wait after the first failed try; it doubles with each"
    )
    max_held: int = Field(
        1000, ge=1, le=100_000, description="messages over a channel's rate that wait for their summary"
    )
    remember_days: float = Field(
        7.0, gt=0, description="for how long a sent message is known, so that it is not sent twice"
    )


class StorageConfig(_Section):
    """The read model."""

    batch: int = Field(1000, ge=1, le=20_000, description="most events folded in one transaction")
    prune_every_s: float = Field(
        300.0, gt=0, description="how often rows are dropped whose events have left the log"
    )
    apart_from: float = Field(
        1000.0,
        ge=0,
        description="events/s from which the read model is kept up by a process of its own; 0: never",
    )


class ServerConfig(_Section):
    """HTTP."""

    host: str = Field("127.0.0.1", description="address to listen on; any but loopback needs a key")
    port: int = Field(4280, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    public_url: str | None = Field(
        None, description="what people reach the server by, in links of messages; default: where it listens"
    )
    max_body_bytes: int = Field(8 << 20, ge=1024, description="largest body of an API request")
    max_batch_events: int = Field(1000, ge=1, description="most events in one batch")
    read_timeout_s: float = Field(
        20.0,
        gt=0,
        le=600,
        description="a request whose head, or next part of its body, has not come by then is given up with 408",
    )
    body_timeout_s: float = Field(
        120.0, gt=0, le=3600, description="longest time all of a request's body may take to come"
    )
    allowed_hosts: tuple[str, ...] = Field(
        (), description="names the server may be called by, besides loopback; checked while access is open"
    )
    drain_s: float = Field(10.0, ge=0, description="how long open requests may finish when the server stops")
    stop_limit_s: float = Field(
        75.0,
        ge=1,
        le=3600,
        description="a service that was asked to stop and has not by then is ended the hard way",
    )


class Settings(BaseSettings):
    """The whole tree. ``load_settings()`` reads it from the environment."""

    model_config = SettingsConfigDict(
        env_prefix="HARK_", env_nested_delimiter="__", frozen=True, extra="forbid"
    )

    home: Path = Field(Path("~/.hark"), description="where this machine's broker, database and keys live")
    config: Path | None = Field(None, description="hark.yaml, or a folder of such files")
    nats_url: str | None = Field(None, description="an external broker: nats://host:4222[,nats://…]")
    api_url: str = Field("http://127.0.0.1:4280", description="where the command line finds the server")
    api_key: SecretStr | None = Field(None, description="the key the command line shows the server")
    nats_server: Path | None = Field(
        None, description="the nats-server program, before the wheel's and PATH's"
    )
    secret_key: SecretStr | None = Field(
        None, description="key that encrypts secrets; default: a file in the home"
    )

    bus: BusConfig = BusConfig()
    engine: EngineConfig = EngineConfig()
    worker: WorkerConfig = WorkerConfig()
    triggers: TriggersConfig = TriggersConfig()
    automations: AutomationsConfig = AutomationsConfig()
    notifications: NotificationsConfig = NotificationsConfig()
    storage: StorageConfig = StorageConfig()
    server: ServerConfig = ServerConfig()

    @property
    def api_address(self) -> str:
        """Where the API is to be expected: ``api_url`` if somebody set it, else this machine's, on the server's port."""
        if "api_url" in self.model_fields_set or not self.server.port:
            return self.api_url
        return f"http://127.0.0.1:{self.server.port}"

    @property
    def home_path(self) -> Path:
        """The home with ``~`` resolved.

        Raises:
            DefinitionError: nobody says where this user's home is.
        """
        from .errors import DefinitionError

        try:
            return self.home.expanduser().absolute()
        except RuntimeError as exc:
            raise DefinitionError(
                f"{self.home} is nowhere: this user has no home directory, and HOME is not set",
                hint="set HARK_HOME to a folder that this user may write to",
            ) from exc


@lru_cache(maxsize=1)
def load_settings() -> Settings:
    """Read the settings from the environment, once per process.

    Raises:
        DefinitionError: a variable has a wrong value or an unknown name; the message names it.
    """
    import os
    from difflib import get_close_matches

    from pydantic import ValidationError

    from .errors import DefinitionError

    known = {f"HARK_{name.upper()}" for name in Settings.model_fields}
    for name, section in Settings.model_fields.items():
        if isinstance(section.annotation, type) and issubclass(section.annotation, _Section):
            known |= {f"HARK_{name.upper()}__{f.upper()}" for f in section.annotation.model_fields}
    # The settings library only looks at names it knows, so a typing mistake would pass in silence.
    for name in sorted(os.environ):
        if name.startswith("HARK_") and name.upper() not in known and not name.startswith("HARK__"):
            near = get_close_matches(name, sorted(known), n=1)
            raise DefinitionError(
                f"the environment has {name}, which is no setting",
                hint=f"did you mean {near[0]}?" if near else "",
            )
    try:
        return Settings()
    except ValidationError as exc:
        first = exc.errors()[0]
        path = "__".join(str(p).upper() for p in first["loc"])
        raise DefinitionError(f"setting HARK_{path}: {first['msg']} (got {first.get('input')!r})") from exc


def environment() -> Mapping[str, str]:
    """Return the environment of the process, for ``{{ env.X }}`` in templates."""
    import os

    return os.environ


def runtime_override(section: str, name: str) -> str | None:
    """Return what ``HARK__RUNTIME__<SECTION>__<NAME>`` in the environment says of the current run, for tests.

    ``PREFECT__RUNTIME__…`` says it, too, in the tests of flows that were written for Prefect.

    No setting of the service: it stands in for a fact of the run that ``hark.runtime`` is asked for.
    """
    import os

    variable = f"__RUNTIME__{section}__{name.upper()}"
    return os.environ.get(f"HARK{variable}", os.environ.get(f"PREFECT{variable}"))


def flow_run_override() -> str | None:
    """Return the id of the run that a process without one is about: ``HARK__FLOW_RUN_ID``, or ``PREFECT__FLOW_RUN_ID``."""
    import os

    return os.environ.get("HARK__FLOW_RUN_ID", os.environ.get("PREFECT__FLOW_RUN_ID"))


def environment_variable(name: str) -> str | None:
    """Return a variable of the environment that is no setting of ours: what somebody's template names."""
    import os

    return os.environ.get(name)
