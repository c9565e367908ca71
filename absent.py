"""What Prefect has under a name and Hark has not, and what to use instead. Read when somebody imports such a name.

Keys are names below ``hark``, of modules or of what is in them; one stands for everything below it, too.
"""

from __future__ import annotations

__all__ = ["ABSENT", "instead_of"]

_CODE = "code is found where the flow stands, or fetched: flow.from_source(GitRepository(…), entrypoint=…)"
_WORKER = "there are no worker classes to derive from; start workers with `hark worker start --pool NAME`"
_CLIENT = "use get_client() for runs, deployments and logs, and hark.Hark for all that the HTTP API does"
_PROFILE = "there are no profiles; set HARK_SECTION__FIELD in the environment (docs/settings.md)"
_STREAM = "use `async for event in hark.Hark().watch_events(…)`, or wait_for_event() in a flow"
_IMAGE = "no images are built: workers run the code where it is; leave image=, build= and push= out"
_INFRASTRUCTURE = "a flow runs on the workers of its deployment's pool: flow.deploy(name, work_pool_name=…)"
_BACKGROUND = "use task.delay(…), and serve(task) or `hark worker` to run what was asked for"

ABSENT: dict[str, str] = {
    "agent": _WORKER,
    "analytics": "nothing is sent to anybody",
    **{
        f"blocks.notifications.{name}": "use AppriseNotificationBlock(url=…): https://github.com/caronc/apprise lists addresses"
        for name in (
            "CustomWebhookNotificationBlock", "OpsgenieWebhook", "PagerDutyWebHook", "SendgridEmail", "TwilioSMS",
        )
    },
    "blocks.redis": "use LocalFileSystem or RemoteFileSystem of hark.filesystems, or leave it out: results are kept by the broker",
    "bundles": _INFRASTRUCTURE,
    "client.base": _CLIENT,
    "client.cloud": "there is no cloud; " + _CLIENT,
    "client.collections": _CLIENT,
    "client.subscriptions": _STREAM,
    "client.utilities": "use get_client() itself: `async with get_client() as client`",
    "concurrency.context": "leases end with the process that holds them; there is nothing to keep",
    "concurrency.services": "use concurrency() and rate_limit() of hark.concurrency",
    **{
        f"client.schemas.actions.{name}": f"give get_client().{call}(…) its arguments"
        for name, call in (
            ("DeploymentFlowRunCreate", "create_flow_run_from_deployment"), ("FlowRunCreate", "create_flow_run"),
            ("DeploymentCreate", "create_deployment"), ("StateCreate", "set_flow_run_state"),
        )
    },
    "client.schemas.actions.FlowRunUpdate": "a run keeps what it was asked for with; flow_run_name= of the flow makes its name",
    "context.AsyncClientContext": _CLIENT,
    "context.SyncClientContext": _CLIENT,
    "context.use_profile": _PROFILE,
    "deployments.base": "write hark.yaml by hand (docs/deployments.md); there are no recipes",
    "deployments.schedules": "write schedules=[Cron(…), Interval(…), RRule(…)], of hark.schedules",
    "deployments.steps": _CODE,
    "docker": _IMAGE,
    **{
        f"events.clients.{name}": _STREAM
        for name in ("AssertingEventsClient", "PrefectEventSubscriber", "get_events_subscriber")
    },
    "events.filters": "hark.Hark().events(type=…, subject=…, since=…) lists events",
    "events.get_events_subscriber": _STREAM,
    "events.FlowRunSubscriber": _STREAM,
    "events.related": "give emit_event(…, related=[…]) what else it is about",
    "events.subscribers": _STREAM,
    "events.worker": "use emit() or emit_event()",
    "exceptions.ExternalSignal": "a process that is told to stop hands its runs back; on_crashed and on_cancellation hooks hear of ends",
    "exceptions.MissingProfileError": _PROFILE,
    "exceptions.Pause": "call pause_flow_run(…)",
    "exceptions.PrefectSignal": "use Abort or Skip of hark",
    "exceptions.TerminationSignal": "a process that is told to stop hands its runs back; on_crashed hooks hear of ends",
    "exceptions.ProfileSettingsValidationError": _PROFILE,
    "filesystems.SMB": 'use RemoteFileSystem(basepath="smb://…"), with what fsspec needs for it',
    "flows.InfrastructureBoundFlow": _INFRASTRUCTURE,
    "flows.bind_flow_to_infrastructure": _INFRASTRUCTURE,
    "flows.load_flow_from_flow_run": "use load_flow_from_entrypoint(…)",
    "futures.PrefectFlowRunFuture": "use run_deployment(name, timeout=0) and wait_for_flow_run(run.id)",
    "infrastructure": _INFRASTRUCTURE,
    "logging.clients": "get_client().read_logs(…) reads the log of a run",
    "logging.filters": "secrets are not logged; configure the loggers with the logging module for more",
    "logging.formatters": "configure the loggers `hark.flow_runs` and `hark.task_runs` with the logging module",
    "logging.configuration": "configure the loggers `hark.flow_runs` and `hark.task_runs` with the logging module",
    "plugins": "there are no plugins",
    "runner.submit_to_runner": "use run_deployment(…)",
    "runner.utils": "use serve(…), or flow.serve(…)",
    "runner.server": "use serve(…), or flow.serve(…)",
    "runner.storage.BlockStorageAdapter": _CODE,
    "runner.storage.RemoteStorage": _CODE,
    "server.api": "the server is started by `hark up`; tests have hark.testing.harness()",
    "server.database": "there are no tables to keep: the event log is the database",
    "server.events": "rules are hark.automations",
    "server.models": "there are no tables to keep: the event log is the database",
    "server.orchestration": "which moves are allowed is MOVES of hark.states",
    "server.schemas": "use hark.states, hark.client.schemas.objects and hark.schedules",
    "settings.Profile": _PROFILE,
    "settings.ProfilesCollection": _PROFILE,
    "settings.load_current_profile": _PROFILE,
    "settings.load_profile": _PROFILE,
    "settings.load_profiles": _PROFILE,
    "settings.save_profiles": _PROFILE,
    "settings.update_current_profile": _PROFILE,
    **{
        f"{where}.{name}": f"use run_{kind}(…) of hark.{where}, or call the {kind}"
        for where, kind, names in (
            ("task_engine", "task", ("AsyncTaskRunEngine", "BaseTaskRunEngine", "SyncTaskRunEngine")),
            ("flow_engine", "flow", ("AsyncFlowRunEngine", "BaseFlowRunEngine", "FlowRunEngine")),
        )
        for name in names
    },
    "task_runners.PrefectTaskRunner": _BACKGROUND,
    "task_runs": "use the future that task.delay(…) returns: future.wait(), or `await future`",
    "telemetry": "spans are made where OpenTelemetry is installed (docs/operations.md)",
    "utilities.compat": "use the standard library, which has it in all versions of Python that Hark runs on",
    "utilities.context": "use get_run_context(), or hark.runtime for ids",
    "utilities.dispatch": "keep a mapping of classes, filled by __init_subclass__; blocks are found by their kind",
    "utilities.engine": "use run_task and run_flow of hark.task_engine and hark.flow_engine",
    "utilities.pydantic": "use pydantic itself: TypeAdapter(…).validate_python(…) stands for parse_obj_as",
    "utilities.processutils": "use anyio.run_process",
    "utilities.dockerutils": _IMAGE,
    "utilities.schema_tools": "parameters are checked against their schema when a run is asked for",
    "utilities.services": "write the loop yourself: asyncio.sleep(…) between tries",
    "utilities.slugify": "use the package python-slugify",
    "utilities.timeout": "use timeout_seconds= of a flow or task, or asyncio.timeout(…)",
    "utilities.urls": "runs have api_url and ui_url in hark.runtime",
    "workers": _WORKER,
}  # fmt: skip
"""From a name to what stands in its place."""


def instead_of(name: str) -> str | None:
    """Return what to use instead of a name, or of what it is below of; None for a name that is nobody's."""
    while name:
        if name in ABSENT:
            return ABSENT[name]
        name = name.rpartition(".")[0]
    return None
