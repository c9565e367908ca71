"""The module names a Prefect user writes: each is there, is in the docs, and costs nothing until it is used."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import hark
import pytest
from hark.absent import ABSENT
from hark.dotted import NAMES

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs" / "from_prefect.md"

WANTED = {
    "artifacts": "create_markdown_artifact acreate_link_artifact update_progress_artifact MarkdownArtifact TableArtifact",
    "assets": "Asset AssetProperties materialize add_asset_metadata",
    "blocks.abstract": "CredentialsBlock NotificationBlock JobBlock JobRun DatabaseBlock ObjectStorageBlock SecretBlock",
    "blocks.core": "Block",
    "blocks.fields": "SecretDict",
    "blocks.notifications": "AppriseNotificationBlock SlackWebhook MicrosoftTeamsWebhook DiscordWebhook MattermostWebhook",
    "blocks.system": "Secret",
    "blocks.webhook": "Webhook",
    "cache_policies": "DEFAULT INPUTS TASK_SOURCE FLOW_PARAMETERS RUN_ID NO_CACHE NONE CachePolicy CompoundCachePolicy Inputs",
    "client.orchestration": "get_client PrefectClient SyncPrefectClient",
    "client.schemas": "State StateType FlowRun TaskRun",
    "client.schemas.filters": "FlowRunFilter FlowRunFilterState FlowRunFilterStateType FlowFilter DeploymentFilter LogFilter",
    "client.schemas.sorting": "FlowRunSort LogSort",
    "client.schemas.objects": "State StateType StateDetails FlowRun TaskRun ConcurrencyLimitConfig ConcurrencyLimitStrategy"
    " TERMINAL_STATES RunInput",
    "client.schemas.schedules": "CronSchedule IntervalSchedule RRuleSchedule",
    "concurrency.asyncio": "concurrency rate_limit",
    "concurrency.sync": "concurrency rate_limit",
    "concurrency.v1.sync": "concurrency",
    "context": "FlowRunContext TaskRunContext EngineContext RunContext TagsContext SettingsContext get_run_context"
    " get_settings_context tags with_context serialize_context hydrated_context",
    "deployments": "run_deployment arun_deployment deploy",
    "deployments.flow_runs": "run_deployment arun_deployment",
    "deployments.runner": "RunnerDeployment deploy adeploy",
    "events": "emit_event Event Resource RelatedResource EventTrigger CompoundTrigger SequenceTrigger MetricTrigger Posture"
    " DeploymentEventTrigger DeploymentMetricTrigger DeploymentCompoundTrigger DeploymentSequenceTrigger",
    "events.schemas.deployment_triggers": "DeploymentEventTrigger DeploymentCompoundTrigger",
    "events.schemas.events": "Event Resource RelatedResource",
    "events.utilities": "emit_event",
    "exceptions": "PrefectException CrashedRun FailedRun CancelledRun PausedRun UnfinishedRun MissingFlowError"
    " UnspecifiedFlowError MissingResult ScriptError ParameterTypeError ParameterBindError SignatureMismatchError"
    " ObjectNotFound ObjectAlreadyExists ObjectLimitReached UpstreamTaskError MissingContextError ReservedArgumentError"
    " InvalidNameError MappingLengthMismatch MappingMissingIterable NotPausedError FlowPauseTimeout FlowRunWaitTimeout"
    " ConfigurationError SerializationError HashError Abort InfrastructureError ProtectedBlockError EventTooLarge",
    "filesystems": "LocalFileSystem RemoteFileSystem ReadableFileSystem WritableFileSystem",
    "flow_engine": "run_flow run_flow_sync run_flow_async FlowRunTimeoutError",
    "flow_runs": "pause_flow_run suspend_flow_run resume_flow_run wait_for_flow_run apause_flow_run asuspend_flow_run"
    " aresume_flow_run",
    "flows": "Flow flow FlowDecorator load_flow_from_entrypoint select_flow serve aserve",
    "futures": "PrefectFuture PrefectDistributedFuture PrefectFutureList PrefectConcurrentFuture as_completed wait resolve_futures_to_results"
    " resolve_futures_to_states DoneAndNotDoneFutures",
    "input": "RunInput RunInputMetadata send_input receive_input",
    "input.run_input": "RunInput AutomaticRunInput BaseRunInput send_input asend_input receive_input",
    "locking.filesystem": "FileSystemLockManager",
    "locking.memory": "MemoryLockManager",
    "locking.protocol": "LockManager",
    "logging": "get_logger get_run_logger disable_run_logger LogEavesdropper",
    "logging.handlers": "APILogHandler PrefectConsoleHandler",
    "logging.loggers": "get_logger get_run_logger disable_logger disable_run_logger flow_run_logger task_run_logger"
    " print_as_log LogEavesdropper PrefectLogAdapter",
    "results": "ResultStore ResultRecord ResultRecordMetadata get_result_store get_default_result_storage should_persist_result",
    "runtime": "flow_run task_run deployment",
    "runtime.flow_run": "id name tags parameters run_count",
    "schedules": "Cron Interval RRule Schedule",
    "serializers": "Serializer PickleSerializer JSONSerializer CompressedSerializer CompressedPickleSerializer"
    " CompressedJSONSerializer prefect_json_object_encoder prefect_json_object_decoder",
    "settings": "Settings get_current_settings temporary_settings PREFECT_HOME PREFECT_API_URL",
    "states": "Scheduled Pending Running Completed Failed Crashed Cancelling Cancelled Paused Suspended AwaitingRetry"
    " AwaitingConcurrencySlot Retrying Late StateGroup get_state_exception raise_state_exception format_exception"
    " exception_to_failed_state exception_to_crashed_state return_value_to_state is_state_iterable get_state_result"
    " aget_state_exception araise_state_exception",
    "task_engine": "run_task run_task_sync run_task_async",
    "task_runners": "TaskRunner ThreadPoolTaskRunner ConcurrentTaskRunner ProcessPoolTaskRunner",
    "task_worker": "serve",
    "tasks": "Task task MaterializingTask exponential_backoff task_input_hash NO_CACHE DEFAULT",
    "testing.utilities": "prefect_test_harness exceptions_equal",
    "transactions": "Transaction AsyncTransaction transaction atransaction get_transaction CommitMode IsolationLevel",
    "utilities.annotations": "unmapped allow_failure quote opaque freeze BaseAnnotation NotSet",
    "utilities.asyncutils": "run_coro_as_sync run_sync_in_worker_thread is_async_fn is_async_gen_fn sync_compatible gather",
    "utilities.callables": "get_call_parameters parameters_to_args_kwargs call_with_parameters get_parameter_defaults"
    " parameter_schema parameter_docstrings explode_variadic_parameter collapse_variadic_parameters expand_mapping_parameters"
    " raise_for_reserved_arguments cloudpickle_wrapped_call",
    "utilities.collections": "visit_collection StopVisiting AutoEnum listrepr isiterable ensure_iterable extract_instances"
    " batched_iterable distinct dict_to_flatdict flatdict_to_dict remove_nested_keys get_from_dict set_in_dict deep_merge"
    " deep_merge_dicts quote",
    "utilities.hashing": "hash_objects stable_hash file_hash",
    "types": "DateTime PositiveInteger NonNegativeInteger NonNegativeFloat NonNegativeTimeDelta Name LogLevel SecretDict",
    "types.entrypoint": "EntrypointType",
    "variables": "Variable",
}
"""What flows import from Prefect, by module."""


@pytest.mark.parametrize("name", sorted(WANTED))
def test_a_module_has_what_flows_import_from_it(name: str) -> None:
    """Every name of a module that a flow's author writes can be imported from the same place here."""
    module = importlib.import_module(f"hark.{name}")
    assert [word for word in WANTED[name].split() if not hasattr(module, word)] == []


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_name_of_the_table_can_be_imported_and_listed(name: str) -> None:
    """Nothing in the table points to a module, or to an attribute, that is not there."""
    module = importlib.import_module(f"hark.{name}")
    assert [word for word in getattr(module, "__all__", ()) if not hasattr(module, word)] == []
    assert dir(module)


def test_the_docs_say_each_name_of_the_table_and_no_other() -> None:
    """In the table of modules."""
    table = DOCS.read_text().split("## Modules")[1].split("## ")[0]
    left = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert {name for cell in left for name in re.findall(r"`hark\.([a-z0-9_.]+)`", cell)} == set(NAMES)


def test_what_is_below_a_name_need_not_be_imported_first() -> None:
    """Nor is it taken for what a module of ours has imported under that name."""
    words = "import hark, hark.concurrency\nnow = hark.utilities.annotations.quote, hark.client.schemas.objects.FlowRun"
    words += "\nprint(now and hark.concurrency.asyncio.__name__, hark.concurrency.v1.sync.__name__)"
    told = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert told.stdout == "hark.engine.concurrency hark.engine.limits.tag_concurrency\n"


def test_a_name_that_is_one_module_is_that_module() -> None:
    """The others pass on what is set; so what is patched under one name is patched under the other."""
    assert importlib.import_module("hark.states") is importlib.import_module("hark.engine.states")
    facts: object = importlib.import_module("hark.runtime.flow_run")
    assert facts is hark.runtime.flow_run


def test_what_is_patched_in_a_module_made_of_several_is_patched_where_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And put back there."""
    made, real = importlib.import_module("hark.flows"), importlib.import_module("hark.engine.flows")
    before = real.select_flow
    with monkeypatch.context() as patched:
        patched.setattr("hark.flows.select_flow", 3)
        assert (made.select_flow, real.select_flow) == (3, 3)
    assert made.select_flow is real.select_flow is before


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("import hark.workers", "Hark has no hark.workers: .*hark worker start"),
        ("from hark.workers.base import BaseWorker", "hark worker start"),
        (
            "from hark.flows import bind_flow_to_infrastructure",
            "bind_flow_to_infrastructure: .*work_pool_name",
        ),
        ("from hark.task_runners import PrefectTaskRunner", r"task\.delay"),
    ],
)
def test_importing_what_hark_has_not_says_what_to_use_instead(statement: str, words: str) -> None:
    """In an ``ImportError``, so that code which tries it goes on."""
    with pytest.raises(ImportError, match=words):
        exec(statement)


def test_what_is_said_to_be_absent_is() -> None:
    """No word of the table hides something that is there, and each says something."""
    for name, instead in ABSENT.items():
        module, _, word = name.rpartition(".")
        assert instead, name
        assert name not in NAMES, name
        assert not (ROOT / name.replace(".", "/")).exists(), name
        assert not (ROOT / f"{name.replace('.', '/')}.py").exists(), name
        if module in NAMES:
            assert not hasattr(importlib.import_module(f"hark.{module}"), word), name


def test_a_module_that_does_not_exist_is_not_found() -> None:
    """As any other."""
    with pytest.raises(ModuleNotFoundError, match=r"hark\.nothing"):
        importlib.import_module("hark.nothing")
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec("from hark.events import nothing")


def run(code: str) -> str:
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return ran.stdout.strip()


def test_a_function_keeps_working_under_the_name_of_a_module() -> None:
    """``hark.concurrency`` is what one calls, also after somebody has imported ``hark.concurrency.sync``."""
    code = (
        "import hark.concurrency.sync, hark; from hark import concurrency; from hark.engine.concurrency import concurrency as c;"
        "print(isinstance(hark.concurrency('a'), c), isinstance(concurrency(['a'], occupy=2), c))"
    )
    assert run(code) == "True True"


def test_an_import_of_what_is_below_a_name_changes_no_module_of_ours() -> None:
    """``hark.concurrency.asyncio`` is bound to ``hark.concurrency``, and the code behind both still has its own ``asyncio``."""
    code = """
import asyncio, sys, hark
import hark.concurrency.asyncio as here, hark.engine.concurrency as ours
sys.modules["prefect"] = hark
import prefect.concurrency.asyncio as there, prefect.concurrency.sync
print(ours.asyncio is asyncio, here is ours, there is ours, hark.concurrency.asyncio is ours)
"""
    assert run(code) == "True True True True"


def test_a_program_can_keep_the_imports_of_prefect() -> None:
    """One line makes them ours, rooms included, each module loaded once."""
    code = """
import sys, hark
sys.modules["prefect"] = hark
import prefect.runtime
from prefect import flow, task, unmapped
from prefect.states import Completed
from prefect.engine.states import Completed as second
from prefect.testing.utilities import prefect_test_harness
from prefect.client.schemas.objects import State
from prefect.utilities.annotations import unmapped as other
import hark.engine.states
assert Completed is second is hark.engine.states.Completed and unmapped is other
assert sys.modules["prefect.engine.states"] is hark.engine.states
assert prefect.context.TaskRunContext.get() is None  # which nobody has imported

@task
def add(a, b): return a + b

@flow
def total(): return sum(add.map([1, 2], unmapped(3)).result())

print(total(), isinstance(Completed(), State), prefect.runtime.flow_run.name)
"""
    assert run(code) == "9 True None"


def test_nothing_is_loaded_before_it_is_used() -> None:
    """The table costs no import."""
    code = "import hark, sys; print([m for m in sys.modules if m.startswith('hark.')])"
    assert run(code) == "['hark.dotted']"


def test_the_version_is_that_of_the_package() -> None:
    """``hark.__version__``."""
    from importlib.metadata import version

    there: Any = hark
    assert there.__version__ == version("hark")
