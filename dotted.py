"""The module names a Prefect user writes, and what each of them is here: ``hark.flows`` is ``hark.engine.flows``.

Nothing stands at these names but this table. ``NAMES`` says where a dotted name's contents come from, and a finder makes the
module when somebody imports it, so that ``import hark`` costs nothing and the rooms stay as they are. The names of Prefect
itself work the same way once a program has said ``sys.modules["prefect"] = hark``.

A name that is exactly one module of ours *is* that module. Others are made of several: an attribute is looked for in the
modules in their order, or where ``word=module:attribute`` says it is; one that is set, is set where it was found.

What Prefect has and Hark has not is in ``absent.py``: importing it raises an ``ImportError`` that says what to use instead.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.abc import Loader
else:
    Loader = object  # importlib.abc takes longer to load than all of this

__all__ = ["NAMES", "UNDER_ANOTHER_NAME", "install"]

NAMES: dict[str, tuple[str, ...]] = {
    "artifacts": ("engine.artifacts",),
    "assets": ("engine.assets",),
    "assets.core": ("engine.assets",),
    "blocks": ("engine.blocks",),
    "blocks.abstract": ("engine.block_kinds",),
    "blocks.core": ("engine.blocks",),
    "blocks.fields": ("engine.block_kinds",),
    "blocks.notifications": ("server.notification_blocks",),
    "blocks.system": ("engine.secret",),
    "blocks.webhook": ("engine.block_kinds",),
    "cache_policies": ("engine.cache_policies",),
    "client": ("get_client=server.prefect_client:get_client",),
    "client.orchestration": ("server.prefect_client", "engine.client"),
    "client.schemas": ("engine.states", "engine.runs.run", "engine.runs.task_run", "engine.run_input"),
    "client.schemas.objects": (
        "engine.states", "engine.runs.run", "engine.runs.task_run", "engine.run_input", "server.description",
        "DeploymentSchedule=triggers.schedule_kinds:DeploymentSchedule",
        "Flow=engine.client_calls.run_records:FlowRecord", "FlowRunInput=engine.pausing.kept_inputs:FlowRunInput", "Log=engine.client_calls.run_records:LogRecord", "Deployment=server.prefect_client:ReadDeployment",
        "WorkPool=server.prefect_client:WorkPool", "WorkQueue=engine.client_calls.queue_calls:WorkQueue", "ConcurrencyLimit=engine.client_calls.kept_calls:ConcurrencyLimit", "Variable=engine.values:Variable",
        "GlobalConcurrencyLimit=engine.client_calls.kept_calls:GlobalConcurrencyLimit",
        "TERMINAL_STATES=engine.states:TERMINAL",
    ),
    "client.schemas.actions": (
        "engine.client_calls.kept_calls", "LogCreate=engine.client_calls.log_calls:LogCreate", "DeploymentScheduleCreate=triggers.schedule_kinds:DeploymentScheduleCreate",
        "DeploymentUpdate=server.prefect_client:DeploymentUpdate", "WorkPoolCreate=server.prefect_client:WorkPoolCreate",
        "WorkPoolUpdate=server.prefect_client:WorkPoolUpdate",
        "DeploymentScheduleUpdate=triggers.schedule_kinds:DeploymentScheduleUpdate",
    ),
    "client.schemas.filters": ("engine.client_calls.run_filters",),
    "client.schemas.responses": (
        "engine.client", "DeploymentResponse=server.prefect_client:ReadDeployment", "FlowRunResponse=engine.runs.run:FlowRun",
        "GlobalConcurrencyLimitResponse=engine.client_calls.kept_calls:GlobalConcurrencyLimit",
    ),
    "client.schemas.schedules": ("triggers.schedule_kinds",),
    "client.schemas.sorting": ("engine.client_calls.run_sorts",),
    "concurrency": ("engine.concurrency",),
    "concurrency.asyncio": ("engine.concurrency",),
    "concurrency.sync": ("engine.concurrency",),
    "concurrency.v1": (),
    "concurrency.v1.asyncio": ("engine.limits.tag_concurrency",),
    "concurrency.v1.sync": ("engine.limits.tag_concurrency",),
    "context": ("engine.context", ""),
    "deployments": ("engine.deployments", "server.serving"),
    "deployments.flow_runs": ("engine.deployments",),
    "deployments.runner": ("server.description", "server.serving", "EntrypointType=engine.deployments:EntrypointType"),
    "events": (
        "engine.events", "automations.prefect_trigger", "automations.prefect_action", "Event=engine.event_view:Event", "ReceivedEvent=engine.event_view:Event",
        "get_events_client=engine.events_client:get_events_client", "AutomationCore=automations.prefect_automation:AutomationCore",
    ),
    "events.actions": ("automations.prefect_action",),
    "events.clients": ("engine.events_client", ""),
    "events.schemas": (),
    "events.schemas.automations": ("automations.prefect_trigger", "automations.prefect_automation"),
    "events.schemas.deployment_triggers": ("automations.prefect_trigger",),
    "events.schemas.events": (
        "engine.events", "Event=engine.event_view:Event", "ReceivedEvent=engine.event_view:Event",
        "ResourceSpecification=automations.prefect_trigger:ResourceSpecification",
    ),
    "events.utilities": ("engine.events",),
    "exceptions": ("engine.exceptions", "PrefectHTTPStatusError=server.client:ApiError"),
    "filesystems": ("engine.filesystems", ""),
    "flow_runs": ("engine.flow_runs",),
    "flow_engine": ("engine.running", "FlowRunTimeoutError=errors:RunTimedOut"),
    "flows": ("engine.flows", "EntrypointType=engine.deployments:EntrypointType", "aserve=server.serving:aserve", "serve=server.serving:serve"),
    "futures": ("engine.futures", "PrefectDistributedFuture=engine.background_tasks.distributed_future:PrefectDistributedFuture"),
    "input": ("engine.run_input", "engine.pausing.kept_inputs"),
    "input.actions": ("engine.pausing.kept_inputs",),
    "input.run_input": ("engine.run_input", "engine.pausing.kept_inputs", "GetInputHandler=engine.pausing.mailbox:Mailbox"),
    "locking": ("engine.locking",),
    "locking.filesystem": ("engine.locking",),
    "locking.memory": ("engine.locking",),
    "locking.protocol": ("engine.locking",),
    "logging": ("engine.logging",),
    "logging.handlers": ("engine.logging",),
    "logging.loggers": ("engine.logging",),
    "results": ("engine.results", "engine.persistence.result_defaults"),
    "runtime": ("engine.runtime",),
    "runtime.deployment": ("engine.runtime:deployment",),
    "runtime.flow_run": ("engine.runtime:flow_run",),
    "runtime.task_run": ("engine.runtime:task_run",),
    "runner": ("engine.code_source", "Runner=server.runner:Runner", "serve=server.serving:serve"),
    "runner.runner": ("server.runner",),
    "runner.storage": ("engine.code_source",),
    "schedules": ("triggers.shorthand",),
    "serializers": ("engine.serializers",),
    "settings": ("config", "testing.temporary", "get_current_settings=config:load_settings"),
    "settings.context": ("testing.temporary", "get_current_settings=config:load_settings"),
    "states": ("engine.states",),
    "task_engine": ("engine.running", "TaskRunTimeoutError=errors:RunTimedOut"),
    "task_runners": ("engine.task_runners", ""),
    "task_worker": ("server.task_serving",),
    "tasks": ("engine.tasks", "MaterializingTask=engine.assets:MaterializingTask"),
    "testing.utilities": ("testing.rig", "testing.equality", "prefect_test_harness=testing.rig:hark_test_harness"),
    "transactions": ("engine.transactions",),
    "types": ("engine.utilities.field_types", "SecretDict=engine.block_kinds:SecretDict",),
    "types.entrypoint": ("EntrypointType=engine.deployments:EntrypointType",),
    "utilities": (),
    "utilities.annotations": ("engine.annotations",),
    "utilities.asyncutils": ("engine.utilities.asyncness", "engine.utilities.gathering"),
    "utilities.callables": ("engine.utilities.callables",),
    "utilities.collections": ("engine.utilities.visiting", "engine.utilities.iterables", "engine.utilities.nested_dicts", "engine.annotations"),
    "utilities.filesystem": ("engine.utilities.paths",),
    "utilities.hashing": ("engine.utilities.hashing",),
    "utilities.importtools": ("engine.utilities.import_path",),
    "utilities.math": ("engine.utilities.random_interval",),
    "utilities.names": ("engine.utilities.wording",),
    "utilities.templating": ("engine.utilities.placeholders",),
    "utilities.text": ("engine.utilities.wording",),
    "utilities.visualization": ("engine.visualization",),
    "variables": ("engine.values",),
}  # fmt: skip
"""From a dotted name below ``hark`` to where its contents are: modules, ``word=module:attribute``, or ``module:object``.

An empty source keeps a name from being one module, so that what is absent from it can be answered.
"""

UNDER_ANOTHER_NAME: dict[str, tuple[str, ...]] = {
    "automations": ("automations.prefect_automation", "automations.prefect_action", "automations.prefect_trigger", "automations"),
}  # fmt: skip
"""What is something else below ``prefect`` (or whatever the package goes by) than below ``hark``: two rooms of one name."""

_PARENTS = {name.rpartition(".")[0] for name in NAMES}


class _Made(ModuleType):
    """A module whose attributes are those of others."""

    def __init__(self, name: str, sources: tuple[str, ...], root: str) -> None:
        super().__init__(name, f"Made of {', '.join(sources) or 'what is below it'}; see ``hark.dotted``.")
        self._modules = [source for source in sources if source and "=" not in source]
        self._words = dict(source.split("=", 1) for source in sources if "=" in source)
        self._root = root
        self._before: dict[str, tuple[ModuleType, object]] = {}
        """What modules of ours had, where something else was set."""
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> object:
        if name == "__all__":
            return sorted({word for module in self._imported() for word in module.__all__} | set(self._words))
        if not name.startswith("__"):
            # Before the modules' own names: ``concurrency.asyncio`` is not the ``asyncio`` that one of them imports.
            if f"{self.__name__.partition('.')[2]}.{name}" in NAMES:
                return import_module(f"{self.__name__}.{name}")
            if name in self._words:
                module, _, attribute = self._words[name].partition(":")
                return getattr(import_module(f"{self._root}.{module}"), attribute)
            for module_ in self._imported():
                if hasattr(module_, name):
                    return getattr(module_, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: object) -> None:
        """Set what a module of ours has in that module, so that what is patched under one name is patched under all."""
        below = f"{self.__name__.partition('.')[2]}.{name}"
        # What is below it is bound to it by its import: ``concurrency.asyncio`` is not the ``asyncio`` of a module of ours.
        if not name.startswith("_") and name not in vars(self) and below not in NAMES:
            for module in self._imported():
                if hasattr(module, name):
                    self._before.setdefault(name, (module, getattr(module, name)))
                    setattr(module, name, value)
                    return
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        """Take back what was set: pytest deletes what it has patched and has not found in the module's own names."""
        if name in self._before:
            module, value = self._before.pop(name)
            setattr(module, name, value)
        elif name in vars(self) or not hasattr(self, name):
            super().__delattr__(name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.__getattr__("__all__")})  # type: ignore[misc]

    def _imported(self) -> list[ModuleType]:
        return [import_module(f"{self._root}.{module}") for module in self._modules]


class _MadeCallable(_Made):
    """One that has the name of a function of the public face, and stands in for it: ``hark.concurrency("name")``."""

    def __call__(self, *args: object, **kwargs: object) -> object:
        function: object = getattr(self, self.__name__.rpartition(".")[2])
        return function(*args, **kwargs)  # type: ignore[operator]


class _Finder(Loader):
    """Finds the names of the table below ``hark``, and everything of ``hark`` below other names the package goes by."""

    def __init__(self, root: str) -> None:
        self._root = root

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        top, _, rest = fullname.partition(".")
        if top == self._root:
            if rest not in NAMES:
                return None
        elif not rest or sys.modules.get(top) is not sys.modules[self._root]:
            return None
        return ModuleSpec(fullname, self, is_package=False)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        # Import takes what it finds under the name once we are done, so that a module of ours can stand at two names.
        top, _, rest = module.__name__.partition(".")
        found: ModuleType
        if top == self._root:
            found = self._at(rest)
        elif rest in UNDER_ANOTHER_NAME:
            found = _Made(module.__name__, UNDER_ANOTHER_NAME[rest], self._root)
        else:
            found = import_module(f"{self._root}.{rest}")
        sys.modules[module.__name__] = found

    def _at(self, name: str) -> ModuleType:
        sources = NAMES[name]
        if name not in _PARENTS and len(sources) == 1 and "=" not in sources[0]:
            where, _, attribute = sources[0].partition(":")
            found = import_module(f"{self._root}.{where}")
            return getattr(found, attribute) if attribute else found
        made = _MadeCallable if callable(getattr(sys.modules[self._root], name, None)) else _Made
        return made(f"{self._root}.{name}", sources, self._root)


class _Absent:
    """Asked last, for what nobody has: says what to use instead of a name of Prefect's that Hark has not."""

    def __init__(self, root: str) -> None:
        self._root = root

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        top, _, rest = fullname.partition(".")
        if top != self._root or not rest:
            return
        from .absent import instead_of

        hint = instead_of(rest)
        if hint is not None:
            raise ImportError(f"Hark has no {fullname}: {hint}", name=fullname)


def install(root: str) -> None:
    """Have the names found below the package ``root``. Asked first, since a second name must not load a room twice."""
    sys.meta_path.insert(0, _Finder(root))
    sys.meta_path.append(_Absent(root))
