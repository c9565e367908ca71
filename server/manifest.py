"""``hark.yaml``: one file or a folder of files, read into records for the buckets, or every fault in them at once.

A record is what a bucket will hold: JSON, checked by the model of the room it belongs to. References between records
are checked too (``reference.py``). Nothing here touches the broker.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import orjson
from pydantic import BaseModel

from ..errors import DefinitionError
from ..template import template_names
from ..vocabulary import JsonObject, JsonValue
from .entrypoint import FlowSource, inspect_entrypoint
from .fault import Fault, ManifestInvalid, Position, did_you_mean
from .parameter import parameter_faults
from .reference import Names, reference_faults
from .shape import dotted, shape
from .yaml_source import MAX_FILES, Node, Source, config_files, read_source

__all__ = ["BUCKETS", "Manifest", "Record", "check_manifest", "load_manifest", "model_of"]

BUCKETS = (
    "deployments", "schedules", "webhooks", "automations", "channels", "notifications", "pools", "variables",
    "sources", "sinks", "limits",
)  # fmt: skip
"""The buckets a configuration writes."""

SECTIONS = frozenset(BUCKETS) - {"schedules"}

ROUTES = "routes"
"""The one key of the bucket `notifications`: the section is one thing, not a mapping of names."""

_NAME = re.compile(r"(?=.{1,100}$)[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")


@dataclass(frozen=True, slots=True)
class Record:
    """One thing of the configuration, as its bucket will hold it.

    Attributes:
        written: the keys that stood in the file; what was not written (such as ``paused``) may be kept from live.
        at: where it stands; node: the text below it, with the places of its parts. Not part of what is sent to a server.
    """

    bucket: str
    key: str
    value: JsonValue
    written: frozenset[str] = frozenset()
    at: Position = field(default=Position("", 0, 0), compare=False)
    node: Node | None = field(default=None, compare=False, repr=False)

    def place_of(self, loc: Sequence[str | int]) -> Position:
        """Return where the part at ``loc`` stands, or the nearest one around it that was written."""
        at, node = self.at, self.node
        for part in loc:
            if node is None or (isinstance(part, int) and part not in node.children):
                continue  # one that is written without its list
            if part not in node.children:
                break
            at = node.keys[part] if isinstance(part, str) and part in node.keys else node.children[part].at
            node = node.children[part]
        return at


@dataclass(frozen=True, slots=True)
class Manifest:
    """A configuration that is right in itself."""

    records: Mapping[tuple[str, str], Record]
    warnings: tuple[Fault, ...] = ()
    files: tuple[str, ...] = ()

    def names(self, bucket: str) -> list[str]:
        return [key for b, key in self.records if b == bucket]

    def secrets(self) -> dict[str, Position]:
        """Return the secrets its templates read, each with the first place that does."""
        found: dict[str, Position] = {}
        for record in self.records.values():
            for text in _texts(record.value):
                if "secrets" in text:
                    for name in template_names(text):
                        if name.startswith("secrets."):
                            found.setdefault(name.split(".")[1], record.at)
        return found

    def to_json(self) -> JsonObject:
        """Return the form a server takes at ``/api/config/plan`` and ``/api/config/apply``."""
        records: list[JsonValue] = [
            {"bucket": r.bucket, "key": r.key, "value": r.value, "written": _words(r.written)}
            for r in self.records.values()
        ]
        return {"records": records}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read the form ``to_json`` makes, checking every record anew.

        Raises:
            DefinitionError: it is not of this form, or a record does not fit its model.
        """
        items = value.get("records") if isinstance(value, dict) else None
        if not isinstance(items, list):
            raise DefinitionError("a manifest is an object with a list `records`")
        records: dict[tuple[str, str], Record] = {}
        for item in items:
            if (
                not isinstance(item, dict)
                or item.get("bucket") not in BUCKETS
                or not isinstance(item.get("key"), str)
            ):
                raise DefinitionError(
                    f"a record has a bucket of {', '.join(BUCKETS)} and a key", hint=str(item)[:200]
                )
            bucket, key = str(item["bucket"]), str(item["key"])
            model = model_of(bucket)
            checked = item.get("value")
            if model is not None:
                at = Position(f"{bucket}/{key}", 1, 1)
                made, faults = shape(model, Node(checked, at), path=(bucket, key), value=checked)
                if made is None:
                    raise ManifestInvalid(faults)
                checked = stored_form(made)
            written = item.get("written")
            words = frozenset(str(w) for w in written) if isinstance(written, list) else frozenset()
            records[bucket, key] = Record(bucket, key, checked, words)
        return cls(records)


def _words(words: frozenset[str]) -> list[JsonValue]:
    return [*sorted(words)]


def model_of(bucket: str) -> type[BaseModel] | None:
    """Return the model of a bucket's values; None for variables, which are any JSON."""
    match bucket:
        case "deployments":
            from ..engine.dispatching.deployment import Deployment

            return Deployment
        case "schedules":
            from ..triggers.schedule import StoredSchedule

            return StoredSchedule
        case "webhooks":
            from ..triggers.webhook import Webhook

            return Webhook
        case "automations":
            from ..automations.model import Automation

            return Automation
        case "channels":
            from ..notifications.channel import Channel

            return Channel
        case "notifications":
            from .routing import CheckedRouting

            return CheckedRouting
        case "pools":
            from ..engine.dispatching.pool import Pool

            return Pool
        case "sources":
            from ..triggers.source import Source

            return Source
        case "sinks":
            from ..automations.acting.sink import Sink

            return Sink
        case "limits":
            from ..engine.limits.limit import Limit

            return Limit
        case _:
            return None


def stored_form(model: BaseModel) -> JsonValue:
    """Return the JSON a bucket holds for a model: defaults left out, so that a new default needs no migration."""
    from ..automations.model import Automation

    if isinstance(model, Automation):
        return model.to_json()
    value: JsonValue = orjson.loads(model.model_dump_json(exclude_defaults=True, by_alias=True))
    event = getattr(model, "event", None)
    if isinstance(value, dict) and isinstance(value.get("event"), dict) and getattr(event, "has_data", False):
        # `data: null` and no `data` are two things in a webhook: nothing, and the body.
        value["event"] = {**value["event"], "data": event.data}  # type: ignore[union-attr,dict-item]
    return value


def load_manifest(path: Path, *, live: Names | None = None) -> Manifest:
    """Read a configuration.

    Args:
        live: names that exist besides it (made by the API or by ``.deploy()``), which it may refer to.
    Raises:
        ManifestInvalid: with every fault there is.
    """
    manifest, faults = check_manifest(path, live=live)
    if any(not f.is_warning for f in faults):
        raise ManifestInvalid(faults)
    return manifest


def check_manifest(
    path: Path, *, live: Names | None = None, references: bool = True
) -> tuple[Manifest, list[Fault]]:
    """Return what could be read of a configuration and everything that is wrong with it, in file order.

    Args:
        references: whether what it refers to (deployments, channels) has to be defined.
    """
    try:
        files = config_files(path)
    except FileNotFoundError:
        fault = Fault(
            Position(str(path), 1, 1), "there is no such file or folder", "", "name another with --config"
        )
        return Manifest({}), [fault]
    if len(files) > MAX_FILES:
        fault = Fault(
            Position(str(path), 1, 1), f"the folder has {len(files)} YAML files, and {MAX_FILES} are read"
        )
        return Manifest({}), [fault]
    if not files:
        fault = Fault(
            Position(str(path), 1, 1),
            "the folder has no .yaml file",
            "",
            "write one, such as hark.yaml",
            is_warning=True,
        )
        return Manifest({}), [fault]
    root = path if path.is_dir() else path.parent
    return check_sources([read_source(f) for f in files], root.absolute(), live=live, references=references)


def check_sources(
    sources: Sequence[Source], root: Path, *, live: Names | None = None, references: bool = True
) -> tuple[Manifest, list[Fault]]:
    """Like ``check_manifest``, of files that were read already; flows are looked for in ``root``."""
    reader = _Reader(root)
    for source in sources:
        reader.faults.extend(source.faults)
        if source.root is not None:
            reader.read(source.root)
    if references:
        stored = {k: r.value for k, r in reader.records.items()}
        reader.faults.extend(reference_faults(stored, reader.nodes, live=live or {}, broken=reader.broken))
        reader.faults.extend(parameter_faults(stored, reader.nodes, reader.flows))
    faults = sorted(set(reader.faults), key=lambda f: (f.at, f.message))
    warnings = tuple(f for f in faults if f.is_warning)
    return Manifest(reader.records, warnings, tuple(s.file for s in sources)), faults


@lru_cache(maxsize=1)
def _schedule_line() -> type[Any]:
    """Return a model with one field ``schedule``: any of the kinds there are."""
    from pydantic import create_model

    from ..triggers.schedule import Schedule

    return create_model("ScheduleLine", schedule=(Schedule, ...))


class _Reader:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.faults: list[Fault] = []
        self.records: dict[tuple[str, str], Record] = {}
        self.nodes: dict[tuple[str, str], Node] = {}
        self.flows: dict[str, FlowSource] = {}
        self.broken: dict[str, set[str]] = {}
        """Names that are defined but wrong: who refers to them is not told that they are missing."""

    def read(self, root: Node) -> None:
        for name, node in root.children.items():
            section, at = str(name), root.keys[str(name)]
            if section.startswith("x-"):
                continue  # a place for anchors, as in compose files
            if section not in SECTIONS:
                hint = did_you_mean(section, SECTIONS) or "known are " + ", ".join(sorted(SECTIONS))
                self._fault(at, f"{section!r} is no section", section, hint)
            elif node.value is None:
                continue  # `automations:` with nothing below it yet
            elif not isinstance(node.value, dict):
                self._fault(
                    node.at, f"{section!r} must be a mapping of names", section, "write `name: …` below it"
                )
            elif section == "notifications":
                self._routing(node, at)
            else:
                for key, child in node.children.items():
                    self._entry(section, str(key), child, node.keys[str(key)])

    def _entry(self, section: str, key: str, node: Node, at: Position) -> None:
        if section == "limits" and key.isprintable() and 0 < len(key.strip()) <= 200:
            from ..engine.limits.limit import key_of

            key = key_of(key)  # tags have names of any kind
        elif not _NAME.fullmatch(key):
            message = f"{key!r} is not a name: use letters, digits, '.', '_' and '-', 100 at most"
            self._fault(at, message, f"{section}.{key}", "begin with a letter or digit")
            return
        if (section, key) in self.records or key in self.broken.get(section, ()):
            first = self.records.get((section, key))
            where = f" at {first.at}" if first else ""
            self._fault(
                at,
                f"{key!r} is already defined{where}",
                f"{section}.{key}",
                "rename or remove one of the two",
            )
            return
        if section == "variables":
            self._keep(Record(section, key, node.value, at=at), node)
            return
        if node.value is not None and not isinstance(node.value, dict):
            self._fault(
                node.at, f"{key!r} must be a mapping", f"{section}.{key}", "write its settings below it"
            )
            self.broken.setdefault(section, set()).add(key)
            return
        self.nodes[section, key] = node
        before = len(self.faults)
        if section == "deployments":
            self._deployment(key, node, at)
        else:
            self._model(section, key, node, at, dict(node.value or {}))
        if len(self.faults) > before and (section, key) not in self.records:
            self.broken.setdefault(section, set()).add(key)

    def _model(self, section: str, key: str, node: Node, at: Position, value: JsonObject) -> None:
        model_class = model_of(section)
        assert model_class is not None
        if "name" in node.children and "name" in model_class.model_fields:
            place = node.keys["name"]
            self._fault(place, "the name is the key above it", f"{section}.{key}.name", "remove this line")
            return
        if section == "automations" and "owner" in node.children:
            place, hint = node.keys["owner"], "write the rule under `triggers:` of the deployment"
            self._fault(place, "a rule cannot be given to a deployment here", f"{section}.{key}.owner", hint)
            return
        written = frozenset(value)
        if "name" in model_class.model_fields:
            value["name"] = key
        here = Node(node.value, at if not node.children else node.at, node.children, node.keys)
        model, faults = shape(model_class, here, path=(section, key), value=value)
        self.faults.extend(faults)
        if model is not None:
            self._keep(Record(section, key, stored_form(model), written, at), node)

    def _routing(self, node: Node, at: Position) -> None:
        """Read the section that is one record: the tree of routes."""
        first = self.records.get(("notifications", ROUTES))
        if first is not None:
            message = f"`notifications` is already written at {first.at}"
            self._fault(at, message, "notifications", "one tree routes everything; keep it in one file")
            return
        model_class = model_of("notifications")
        assert model_class is not None
        value = dict(node.value) if isinstance(node.value, dict) else {}
        model, faults = shape(model_class, node, path=("notifications",), value=value)
        self.faults.extend(faults)
        if model is not None:
            record = Record("notifications", ROUTES, stored_form(model), frozenset(value), at)
            self._keep(record, node)

    def _deployment(self, key: str, node: Node, at: Position) -> None:
        value = dict(node.value) if isinstance(node.value, dict) else {}
        value.pop("schedules", None)
        value.pop("triggers", None)
        if "path" not in value and "source" not in value:
            value["path"] = str(self.root)
        elif isinstance(path := value.get("path"), str):
            value["path"] = str((self.root / Path(path).expanduser()).absolute())
        extra, flow = self._flow(key, node, value)
        self._model("deployments", key, node, at, {**extra, **value})
        schedules = node.children.get("schedules")
        if schedules is not None:
            self._schedules(key, schedules)
        triggers = node.children.get("triggers")
        if triggers is not None:
            self._triggers(key, triggers)
        if flow is not None:
            self.flows[key] = flow

    def _flow(self, key: str, node: Node, value: JsonObject) -> tuple[JsonObject, Any]:
        flow = node.children.get("flow")
        if flow is None or not isinstance(flow.value, str) or ":" not in flow.value:
            return {}, None  # the model says so, with its place
        if "source" in value:
            return {}, None  # a worker fetches it; it need not be here to be looked at
        try:
            source = inspect_entrypoint(flow.value, Path(str(value.get("path", self.root))))
        except DefinitionError as exc:
            self._fault(flow.at, str(exc), f"deployments.{key}.flow", exc.hint)
            return {}, None
        return ({"flow_name": source.flow_name} if source.flow_name else {}), source

    def _schedules(self, deployment: str, node: Node) -> None:
        from ..triggers.schedule import StoredSchedule, resolve_calendars

        path: tuple[str | int, ...] = ("deployments", deployment, "schedules")
        if not isinstance(node.value, list):
            self._fault(node.at, "must be a list", dotted(path), "begin each schedule with `- `")
            return
        for index, child in node.children.items():
            below = (*path, index)
            line, faults = shape(
                _schedule_line(),
                Node(None, child.at, {"schedule": child}),
                path=below,
                value={"schedule": child.value},
            )
            inner = dotted((*below, "schedule"))
            self.faults.extend(replace(f, path=dotted(below) + f.path.removeprefix(inner)) for f in faults)
            if line is None:
                continue
            try:
                schedule = resolve_calendars(line.schedule, self._text_of, now=datetime.now(UTC))
            except DefinitionError as exc:
                self._fault(
                    (child.find(("exclude",)) or child).at, str(exc), dotted((*below, "exclude")), exc.hint
                )
                continue
            stored = StoredSchedule.of(deployment, int(index), schedule)
            # Pausing is a fact of the stored schedule, so that a person can pause and resume it.
            stored = stored.model_copy(update={"schedule": schedule.model_copy(update={"paused": False})})
            if ("schedules", stored.key) in self.records:
                message = f"the deployment has two schedules named {stored.name!r}"
                self._fault(
                    (child.find(("name",)) or child).at, message, dotted(below), "give each its own name"
                )
                continue
            written = frozenset(child.value) if isinstance(child.value, dict) else frozenset()
            record = Record("schedules", stored.key, stored_form(stored), written, child.at)
            self._keep(record, child)

    def _triggers(self, deployment: str, node: Node) -> None:
        """Read the rules of a deployment: automations that run it, and are its own."""
        from ..automations.deployment_trigger import DeploymentTrigger
        from ..automations.problem import RuleInvalid

        path: tuple[str | int, ...] = ("deployments", deployment, "triggers")
        if not isinstance(node.value, list):
            self._fault(node.at, "must be a list", dotted(path), "begin each trigger with `- `")
            return
        for index, child in node.children.items():
            below = (*path, index)
            value: JsonValue = {"on": child.value} if isinstance(child.value, str) else child.value
            trigger, faults = shape(DeploymentTrigger, child, path=below, value=value)
            self.faults.extend(faults)
            if trigger is None:
                continue
            try:
                rule = trigger.automation(deployment, int(index) + 1)
            except RuleInvalid as exc:
                self._fault(child.at, str(exc), dotted(below), "give the trigger a shorter `name`")
                continue
            first = self.records.get(("automations", rule.name))
            if first is not None:
                message = f"a rule named {rule.name!r} is already defined at {first.at}"
                self._fault(
                    (child.find(("name",)) or child).at, message, dotted(below), "give it another `name`"
                )
                continue
            written = frozenset(child.value) if isinstance(child.value, dict) else frozenset({"on"})
            self._keep(Record("automations", rule.name, stored_form(rule), written, child.at), child)

    def _text_of(self, file: str) -> str:
        return (self.root / Path(file).expanduser()).read_text()

    def _keep(self, record: Record, node: Node) -> None:
        self.records[record.bucket, record.key] = replace(record, node=node)
        self.nodes[record.bucket, record.key] = node

    def _fault(
        self, at: Position, message: str, path: str, suggestion: str = "", *, is_warning: bool = False
    ) -> None:
        self.faults.append(Fault(at, message, path, suggestion, is_warning))


def _texts(value: JsonValue) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
