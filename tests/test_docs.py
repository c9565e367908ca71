"""The docs are held to the code: a setting, command, operator, preset or kind of event that they leave out fails here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pytest
from hark.automations.action import ACTIONS, TARGETS
from hark.automations.analysis.own_event import OWN_EVENTS
from hark.automations.matching.condition import OPERATORS
from hark.automations.model import Automation
from hark.bus.event import OWN_WORDS
from hark.config import Settings
from hark.engine.dispatching.deployment import ConcurrencySpec, Deployment
from hark.engine.dispatching.pool import Pool, QueueSpec
from hark.engine.flows import FlowOptions
from hark.engine.options.task_options import TaskOptions
from hark.engine.states import State
from hark.notifications.channel import Channel
from hark.server.lint import run_rule_tests
from hark.server.manifest import load_manifest
from hark.triggers.preset import PRESETS, HmacVerify
from hark.triggers.schedule import AtSchedule, CronSchedule, IntervalSchedule, RRuleSchedule
from hark.triggers.webhook import EventMapping, Webhook
from hark.vocabulary import StateType

if TYPE_CHECKING:
    from pydantic import BaseModel

DOCS = Path(__file__).resolve().parent.parent / "docs"
FLOWS = """
from hark import flow

@flow
def handle_order(order: str, amount: float) -> str: ...

@flow
def etl(source: str = "orders", full: bool = False) -> None: ...
"""
LIVE: Mapping[str, set[str]] = {"deployments": {"nightly-etl", "handle-order"}, "channels": {"oncall"}}
"""What a shown part of a configuration may refer to without defining it."""


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text()


def missing(names: Iterator[str] | list[str], text: str) -> list[str]:
    """Return the names that do not stand in the text as code, alone or at the beginning of a piece of code."""
    return sorted({n for n in names if not re.search(rf"`{re.escape(n)}(?![A-Za-z0-9_-])", text)})


def keys_of(*models: type[BaseModel]) -> list[str]:
    """Return how the fields of models are written."""
    return [field.alias or name for model in models for name, field in model.model_fields.items()]


def inner_model(model: type[BaseModel], name: str) -> type[BaseModel]:
    """Return the model of the items of a field that holds several."""
    item = get_args(model.model_fields[name].annotation)[0]
    found = get_args(item)[0] if get_args(item) else item
    assert isinstance(found, type)
    return found


def test_every_setting_is_in_the_docs() -> None:
    """A setting nobody can read about does not exist."""
    names = []
    for name, field in Settings.model_fields.items():
        section = getattr(field.annotation, "model_fields", None)
        prefix = f"HARK_{name.upper()}"
        names += [f"{prefix}__{inner.upper()}" for inner in section] if section else [prefix]
    assert [n for n in names if f"`{n}`" not in page("settings")] == []


def test_every_command_is_in_the_docs() -> None:
    """`hark …`, all of it, groups and what is in them."""
    import typer
    from hark.cli.main import app

    def commands(command: Any, words: tuple[str, ...]) -> list[str]:
        # Asked for by name: a group may load what is in it only then.
        within = typer.Context(command)
        inner = command.list_commands(within) if hasattr(command, "list_commands") else []
        if not inner:
            return [" ".join(words)]
        return [
            name for word in inner for name in commands(command.get_command(within, word), (*words, word))
        ]

    found = commands(typer.main.get_command(app), ("hark",))
    assert len(found) > 50
    assert missing(found, page("cli")) == []


def shown_commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each `hark …` that a page shows, alternatives (`ls|show`) one by one."""
    shown = [
        line for block in re.findall(r"```sh[^\n]*\n(.*?)```", text, re.S) for line in block.splitlines()
    ]
    for line in [*shown, *re.findall(r"`(hark [a-z][^`\n]*)`", text)]:
        if line.startswith("hark ") and "…" not in line:
            words = [
                re.sub(r"['\",]", "", word) for word in re.split(r" (?:#|\||&&|>) ?", line)[0].split()[1:]
            ]
            at = next((i for i, word in enumerate(words) if "|" in word and word.islower()), None)
            for word in words[at].split("|") if at is not None and at < 2 else [""]:
                yield [*words[:at], word, *words[at + 1 :]] if at is not None and word else words


@pytest.mark.parametrize("file", sorted(DOCS.glob("*.md")), ids=lambda file: file.stem)
def test_every_command_shown_is_there_with_its_options(file: Path) -> None:
    """What a page tells people to type is no command, or option, of another day."""
    import typer
    from hark.cli.main import app

    wrong: list[str] = []
    for words in shown_commands(file.read_text()):
        command: Any = typer.main.get_command(app)
        rest = list(words)
        while hasattr(command, "get_command") and rest and not rest[0].startswith("-"):
            found = command.get_command(typer.Context(command), rest[0])
            if found is None:
                wrong.append(f"hark {' '.join(words)}: no command {rest[0]!r}")
                break
            command, rest = found, rest[1:]
        else:
            known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)} | {"--help"}
            given = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
            wrong += [f"hark {' '.join(words)}: no option {name}" for name in sorted(given - known)]
    assert wrong == []


@pytest.mark.parametrize("word", sorted(OWN_WORDS - {"hark"}))
def test_every_kind_of_own_event_is_in_the_docs(word: str) -> None:
    """What Hark itself emits can be looked up before a rule is written on it."""
    assert f"`{word}." in page("events")


def test_every_event_of_a_rule_is_in_the_docs() -> None:
    """What a rule says of itself, word by word; `created` stands for the changes of its definition."""
    told = {name for name in OWN_EVENTS if name.startswith(("automation.", "action.", "schedule."))}
    changes = {
        f"{first}.{word}"
        for first in ("automation", "schedule")
        for word in ("updated", "deleted", "paused", "resumed")
    }
    assert missing(sorted(told - changes), page("events")) == []


def test_every_state_of_a_run_has_its_event_in_the_docs() -> None:
    """Each word a run's state can be told by."""
    from hark.engine import states

    made = [getattr(states, name)() for name in states.__all__ if name[0].isupper() and name != "State"
            and callable(getattr(states, name)) and not isinstance(getattr(states, name), type)]  # fmt: skip
    words = {state.event_word for state in made if isinstance(state, State)}
    words |= {State(kind).event_word for kind in StateType}
    assert len(words) > 10
    assert missing([f"flow-run.{word}" for word in words], page("events")) == []


def test_every_key_of_the_configuration_is_in_the_docs() -> None:
    """Deployments, their limits, channels and pools, key by key; `name` is the key above."""
    names = keys_of(Deployment, ConcurrencySpec, Channel, Pool, QueueSpec)
    text = page("configuration").replace("{limit, key, on_conflict}", "`limit`, `key`, `on_conflict`")
    assert missing([n for n in names if n != "name"], text) == []
    assert missing(["queue", "skip", "cancel-running"], text) == []


def test_every_key_of_a_schedule_is_in_the_docs() -> None:
    """And the words for what happens to missed slots and to those that overlap."""
    names = keys_of(CronSchedule, IntervalSchedule, RRuleSchedule, AtSchedule)
    words = [
        "none",
        "latest",
        "all",
        "{within: 1h}",
        "skip",
        "queue",
        "allow",
        "cancel-running",
        "day_or: false",
    ]
    found = missing([*(n for n in names if n != "day_or"), *words], page("schedules"))
    assert [n for n in found if f"`{n}`" not in page("schedules")] == []


def test_every_key_of_a_webhook_is_in_the_docs() -> None:
    """And every preset."""
    names = keys_of(Webhook, EventMapping, HmacVerify)
    assert (
        missing([*(n for n in names if n not in ("name", "description")), *PRESETS], page("webhooks")) == []
    )


def test_every_word_of_a_rule_is_in_the_docs() -> None:
    """Its keys, the operators of `where`, and those of its tests."""
    rule_test = inner_model(Automation, "tests")
    models = (Automation, rule_test, inner_model(rule_test, "given"), inner_model(rule_test, "expect"))
    names = [*keys_of(*models), *OPERATORS]
    text = page("rules")
    loose = [n for n in missing(names, text) if not re.search(rf"`[^`\n]*(?<![a-z_]){n}:[^`\n]*`", text)]
    assert loose == []


@pytest.mark.parametrize("word", sorted(ACTIONS))
def test_every_action_is_in_the_docs_with_its_options(word: str) -> None:
    """One row each, which names all that can be written in it."""
    text = page("rules")
    row = next((line for line in text.splitlines() if line.startswith(f"| `{word}: ")), None)
    assert row is not None
    shared = {"if", "retries", "backoff", "timeout", "delay"}
    own = [n for n in keys_of(ACTIONS[word]) if n not in shared | {word, "kind", "target"}]
    if word == "pause":
        own += TARGETS
    elif word == "resume":
        own = []
    assert missing([n for n in own if f"`{n}: " not in row], row) == []
    assert missing(sorted(shared), text) == []


def test_every_option_of_flows_and_tasks_is_in_the_docs() -> None:
    """What `@flow` and `@task` take."""
    assert missing([*FlowOptions.__annotations__, *TaskOptions.__annotations__], page("flows")) == []


def test_every_route_is_in_the_docs() -> None:
    """Method and path, as the server has them."""
    from hark.server.app import make_app
    from hark.server.context import ServerContext

    app: Any = make_app(object.__new__(ServerContext))
    routes = {
        f"{method.upper()} {path}" for path, methods in app.openapi()["paths"].items() for method in methods
    }
    assert len(routes) > 50
    routes |= {"POST /hooks/{name}", "GET /", "GET /docs", "GET /openapi.json"}
    text = page("http")
    assert sorted(r for r in routes if f"`{r}`" not in text) == []


def shown_configurations() -> list[Any]:
    """Return every configuration shown in the docs, marked by where it stands."""
    found = []
    for file in sorted(DOCS.glob("*.md")):
        text = file.read_text()
        for block in re.finditer(r"^```yaml hark\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            line = text[: block.start()].count("\n") + 1
            found.append(pytest.param(block[1], id=f"{file.name}:{line}"))
    return found


@pytest.mark.parametrize("text", shown_configurations())
def test_a_shown_configuration_is_taken_and_its_rule_tests_pass(text: str, tmp_path: Path) -> None:
    """What stands in the docs can be copied: no fault in it, and the rules do what is said of them."""
    (tmp_path / "flows.py").write_text(FLOWS)
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "etl.py").write_text(FLOWS)
    (tmp_path / "hark.yaml").write_text(text)
    manifest = load_manifest(tmp_path / "hark.yaml", live=LIVE)
    assert manifest.records
    assert [r for r in run_rule_tests(manifest) if not r["ok"]] == []


def test_links_between_the_pages_lead_somewhere() -> None:
    """To a page that is there, and to a heading in it."""
    wrong = []
    root = DOCS.parent
    for file in [*sorted(DOCS.glob("*.md")), root / "README.md", root / "CONTRIBUTING.md"]:
        prose = re.sub(r"^```.*?^```", "", file.read_text(), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", prose):
            if "://" in target:
                continue
            name, _, anchor = target.partition("#")
            there = (file.parent / name) if name else file
            if not there.exists() or (anchor and anchor not in anchors_of(there.read_text())):
                wrong.append(f"{file.name}: {target}")
    assert wrong == []


def anchors_of(text: str) -> set[str]:
    """Return the anchors GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
