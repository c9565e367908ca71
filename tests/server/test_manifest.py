"""hark.yaml: every fault at once, each with file, line, column and what to write instead."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from hark.engine.limits.limit import key_of
from hark.errors import DefinitionError
from hark.server.entrypoint import inspect_entrypoint
from hark.server.fault import ManifestInvalid
from hark.server.lint import lint_manifest
from hark.server.manifest import Manifest, check_manifest, load_manifest
from hark.server.plan import Change, make_plan
from hark.vocabulary import JsonValue

Write = Callable[[str], Path]

GOOD = """
x-prod: &prod {tags: [prod], pool: default}
deployments:
  nightly-etl:
    flow: flows/etl.py:etl
    schedules:
      - {cron: "0 6 * * mon-fri", timezone: Europe/Berlin, catch_up: latest, overlap: skip, jitter: 30s}
      - {interval: 15m, anchor: 2026-01-01T00:00:00Z}
      - {rrule: "FREQ=MONTHLY;BYDAY=-1FR;BYHOUR=17", name: month-end, parameters: {full: true}}
    parameters: {source: orders}
    <<: *prod
    concurrency: {limit: 1, key: "{{ parameters.source }}", on_conflict: queue}
webhooks:
  github:
    verify: {preset: github, secret: "{{ secrets.github }}"}
    event: {type: "github.{{ headers['x-github-event'] }}", subject: "repo/{{ body.repository.full_name }}"}
    rate: 50/s
automations:
  failing:
    on: flow-run.failed
    where: {data.tags: prod, data.run.attempt: ">= 2", data.state.message: {not: {prefix: Expected}}}
    for_each: data.flow.name
    count: 3
    within: 10m
    do:
      - notify: oncall
        title: "{{ key }} failed"
      - pause: {deployment: nightly-etl}
      - run: {deployment: nightly-etl}
channels:
  oncall: {urls: ["{{ secrets.slack_url }}"], rate: 10/m}
pools: {default: {concurrency: 8, queues: {high: {priority: 1}}}}
variables: {region: eu, on: [1, 2]}
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write hark.yaml beside a folder of flows and return its path, relative to the working folder."""
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "etl.py").write_text(
        "from hark import flow\n\n@flow(name='the-etl')\ndef etl(source: str, full: bool = False) -> None: ...\n"
    )
    monkeypatch.chdir(tmp_path)

    def to_file(text: str) -> Path:
        Path("hark.yaml").write_text(textwrap.dedent(text))
        return Path("hark.yaml")

    return to_file


def test_a_whole_configuration_becomes_records(write: Write, tmp_path: Path) -> None:
    """Each section goes to its bucket; schedules stand under their deployment; values come back the same."""
    manifest = load_manifest(write(GOOD))
    assert sorted(manifest.records) == [
        ("automations", "failing"), ("channels", "oncall"), ("deployments", "nightly-etl"), ("pools", "default"),
        ("schedules", "nightly-etl/0"), ("schedules", "nightly-etl/1"), ("schedules", "nightly-etl/month-end"),
        ("variables", "on"), ("variables", "region"), ("webhooks", "github"),
    ]  # fmt: skip
    deployment = manifest.records["deployments", "nightly-etl"].value
    assert isinstance(deployment, dict)
    assert deployment["flow_name"] == "the-etl"
    assert deployment["path"] == str(tmp_path)
    assert deployment["tags"] == ["prod"]
    assert manifest.warnings == ()
    again = Manifest.from_json(manifest.to_json())
    assert {w: r.value for w, r in again.records.items()} == {w: r.value for w, r in manifest.records.items()}
    assert sorted(manifest.secrets()) == ["github", "slack_url"]


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("within: 10m", "withn: 10m", "hark.yaml:24:5: unknown key 'withn'; did you mean 'within'?"),
        ("tags: [prod]", "tgas: [prod]", "hark.yaml:2:16: 'tgas' is not known here; did you mean 'tags'?"),
        ("automations:", "automatons:", "hark.yaml:18:1: 'automatons' is no section; did you mean 'automations'?"),
        ("variables:", "pools:", "hark.yaml:33:1: the key 'pools' is already set on line 32"),
        ("count: 3", "count: 3\n    count: 4", "hark.yaml:24:5: the key 'count' is already set on line 23"),
        ("within: 10m", "within: 10 minuts", "hark.yaml:24:13: '10 minuts' is not a duration; write 500ms"),
        ("within: 10m", "within: 10 minutes", "hark.yaml:24:13: '10 minutes' is not a duration; did you mean '10m'?"),
        ("within: 10m", "within: 10", "hark.yaml:24:13: 10 is not a duration: write a number with a unit, such as '10s'"),
        ("{prefix: Expected}", "{prefx: Expected}", "hark.yaml:21:83: unknown operator 'prefx'; did you mean 'prefix'?"),
        ('">= 2"', '{gtt: 2}', "hark.yaml:21:49: unknown operator 'gtt'; did you mean 'gt'?"),
        ("deployment: nightly-etl}\n      - run", "deployment: nightly-elt}\n      - run",
         "hark.yaml:28:29: there is no deployment named 'nightly-elt'; did you mean 'nightly-etl'?"),
        ("run: {deployment: nightly-etl}", "run: nightly_etl",
         "hark.yaml:29:14: there is no deployment named 'nightly_etl'; did you mean 'nightly-etl'?"),
        ("notify: oncall", "notify: onkall", "hark.yaml:26:17: there is no channel named 'onkall'; did you mean 'oncall'?"),
        ("notify: oncall", "notify: hooks.slack.com/services/T", "hark.yaml:26:17: an address is an Apprise URL, and this one has no scheme"),
        ("pool: default}", "pool: defalt}", "hark.yaml:2:36: there is no pool named 'defalt'; did you mean 'default'?"),
        ("flows/etl.py:etl", "flows/elt.py:etl", "hark.yaml:5:11: there is no file 'flows/elt.py'; did you mean 'flows/etl.py'?"),
        ("flows/etl.py:etl", "flows/etl.py:elt", "hark.yaml:5:11: flows/etl.py has no function 'elt'; did you mean 'etl'?"),
        ("flows/etl.py:etl", "nosuch.module:etl", "hark.yaml:5:11: there is no module 'nosuch.module'"),
        ("flows/etl.py:etl", "flows/etl.py", "hark.yaml:5:11: 'flows/etl.py' is not an entrypoint"),
        ("source: orders", "sourc: orders", "hark.yaml:10:18: the flow has no parameter 'sourc'; did you mean 'source'?"),
        ("timezone: Europe/Berlin", "timezon: Europe/Berlin", "hark.yaml:7:35: 'timezon' is not known here; did you mean 'timezone'?"),
        ("mon-fri", "mon-fry", "hark.yaml:7:16: cron: 'fry' is not a day-of-week (0-7 or sun-sat); did you mean 'fri'?"),
        ("interval: 15m", "interval: 15", "hark.yaml:8:20: 15 is not a duration"),
        ("catch_up: latest", "catch_up: lates", "hark.yaml:7:70: catch_up is none, latest, all or {within: 1h}, got 'lates'; did you mean 'latest'?"),
        ("on_conflict: queue", "on_conflict: queu", "hark.yaml:12:74: 'queu' is not one of 'queue', 'skip' or 'cancel-running'; did you mean 'queue'?"),
        ("limit: 1", "limit: 0", "hark.yaml:12:26: this is at least 1, got 0"),
        ("rate: 50/s", "rate: 50 per s", "hark.yaml:17:11: '50 per s' is not a rate"),
        ("preset: github", "preset: githb", "hark.yaml:15:13: there is no preset 'githb'; did you mean 'github'?"),
        ("{{ key }} failed", "{{ key failed", "hark.yaml:27:16:"),
        ("  oncall:", "  on call:", "hark.yaml:31:3: 'on call' is not a name"),
        ("variables: {region: eu", "variables: {: eu", "hark.yaml:33:"),
    ],
)  # fmt: skip
def test_a_fault_has_its_place_and_a_suggestion(write: Write, old: str, new: str, fault: str) -> None:
    """The table of what people get wrong: file, line, column, the fault, what was probably meant."""
    assert old in GOOD
    _, faults = check_manifest(write(GOOD.replace(old, new, 1)))
    shown = [str(f) for f in faults]
    assert any(line.startswith(fault) for line in shown), "\n".join(shown)


def test_a_wrong_flow_name_is_answered_with_flows(tmp_path: Path) -> None:
    """Tasks and helpers beside them are no candidates, neither listed nor taken for what was meant."""
    (tmp_path / "etl.py").write_text(
        "from hark import flow, task\n@task\ndef step(): ...\n@flow(name='x')\ndef load(): ...\n"
        "@flow\nasync def etl(): ...\ndef plain(): ...\n"
    )
    for wrong, hint in (
        ("nothing", "it defines: etl, load"),
        ("steps", "it defines: etl, load"),
        ("elt", "did you mean 'etl'?"),
    ):
        with pytest.raises(DefinitionError) as caught:
            inspect_entrypoint(f"etl.py:{wrong}", tmp_path)
        assert caught.value.hint == hint


def test_all_faults_are_told_at_once_in_file_order(write: Write) -> None:
    """Nobody corrects one line to be told of the next."""
    text = (
        GOOD.replace("within: 10m", "withn: 10m").replace("priority: 1", "priority: x").replace("15m", "15")
    )
    with pytest.raises(ManifestInvalid) as caught:
        load_manifest(write(text))
    lines = [f.at.line for f in caught.value.faults]
    assert lines == sorted(lines)
    assert {8, 24, 32} <= set(lines)
    assert "hark.yaml:8:20" in str(caught.value)


def test_limits_are_of_slots_or_per_time_and_may_be_of_a_tag(write: Write) -> None:
    """Each is checked at its place; the names of tags may be of any kind; one without slots is warned of."""
    manifest, faults = check_manifest(
        write("limits: {warehouse: {slots: 4}, 'tag:db/eu': {slots: 0}, api: {rate: 100/m}}\n")
    )
    assert faults == []
    stored = {key: record.value for (_, key), record in manifest.records.items()}
    assert stored == {"warehouse": {"slots": 4}, key_of("tag:db/eu"): {"slots": 0}, "api": {"rate": "100/m"}}
    [warned] = lint_manifest(manifest)
    assert "'tag:db/eu' has no slots" in warned.message
    _, faults = check_manifest(write("limits:\n  a: {slots: 4, rate: 1/s}\n  b: {slts: 4}\n"))
    assert [f.at.line for f in faults] == [2, 3]
    assert "either `slots` or a `rate`" in faults[0].message
    assert "slots" in faults[1].suggestion


def test_names_of_several_files_are_one_space(write: Write, tmp_path: Path) -> None:
    """A folder is read as one configuration: references go across files, and a name is defined once."""
    write(GOOD)
    folder = tmp_path / "conf"
    folder.mkdir()
    (folder / "a.yaml").write_text("channels: {ops: {urls: ['json://localhost']}}\n")
    (folder / "b.yaml").write_text(
        "automations: {x: {on: a.b, do: {notify: ops}}}\nchannels: {ops: {urls: ['json://h']}}\n"
    )
    _, faults = check_manifest(folder)
    [fault] = faults
    assert str(fault.at) == f"{folder}/b.yaml:2:12"
    assert "'ops' is already defined" in fault.message


def test_names_that_are_live_may_be_referred_to(write: Write) -> None:
    """What the API made exists, though no file says so."""
    path = write("automations: {x: {on: a.b, do: {run: by-hand}}}\n")
    assert len(check_manifest(path)[1]) == 1
    assert check_manifest(path, live={"deployments": ["by-hand"]})[1] == []


def test_a_thing_that_is_wrong_is_not_also_missing(write: Write) -> None:
    """One fault, not two: who refers to a broken definition is not told that it does not exist."""
    _, faults = check_manifest(
        write(
            "deployments: {d: {flow: flows/etl.py:etl, nope: 1}}\nautomations: {x: {on: a.b, do: {run: d}}}\n"
        )
    )
    assert [f.message for f in faults] == ["'nope' is not known here"]


def test_a_name_inside_is_refused(write: Write) -> None:
    """The key is the name."""
    _, faults = check_manifest(write("channels: {a: {name: b, urls: ['json://h']}}\n"))
    assert str(faults[0]) == "hark.yaml:1:16: the name is the key above it; remove this line"


def test_no_file_and_an_empty_file(tmp_path: Path) -> None:
    """A missing file is a fault; an empty one is an empty configuration."""
    _, faults = check_manifest(tmp_path / "none.yaml")
    assert "no such file" in faults[0].message
    (tmp_path / "empty.yaml").write_text("# nothing\nautomations:\n")
    assert check_manifest(tmp_path / "empty.yaml")[1] == []


def test_records_from_elsewhere_are_checked_anew(write: Write) -> None:
    """A server does not believe what a client says it has checked."""
    form = load_manifest(write(GOOD)).to_json()
    records = form["records"]
    assert isinstance(records, list)
    assert isinstance(records[0], dict)
    records[0]["value"] = {"name": "x", "nope": 1}
    with pytest.raises(ManifestInvalid):
        Manifest.from_json(form)


TRIGGERED = """
deployments:
  nightly:
    flow: flows/etl.py:etl
    parameters: {source: a}
    triggers:
      - file.arrived
      - {name: on-paid, on: order.paid, where: {data.n: "> 2"}, parameters: {source: "{{ event.data.id }}"}}
"""


def test_triggers_of_a_deployment_are_rules_of_its_own(write: Write) -> None:
    """Each becomes an automation that the deployment owns; its faults have their places in the file."""
    manifest = load_manifest(write(TRIGGERED))
    assert manifest.names("automations") == ["nightly__automation_1", "on-paid"]
    stored = manifest.records["automations", "on-paid"].value
    assert isinstance(stored, dict)
    assert stored["owner"] == "deployment/nightly"
    assert stored["do"] == [{"run": "nightly", "parameters": {"source": "{{ event.data.id }}"}}]
    for old, new, told in (
        ("order.paid", "Order Paid", (8, "did you mean 'order-paid'")),
        ("on: order", "onn: order", (8, "did you mean 'on'")),
        ("name: on-paid", "name: nightly__automation_1", (8, "already defined at hark.yaml:7")),
        ('parameters: {source: "{{', 'params: {source: "{{', (8, "'parameters'")),
    ):
        _, faults = check_manifest(write(TRIGGERED.replace(old, new)))
        assert [(f.at.line, told[1] in f"{f.message} {f.suggestion}") for f in faults] == [(told[0], True)], (
            faults
        )
    _, faults = check_manifest(write("automations: {a: {on: a.b, owner: deployment/x}}"))
    assert "`triggers:` of the deployment" in faults[0].suggestion


def test_a_trigger_taken_out_of_its_deployment_is_gone_without_pruning() -> None:
    """Like a schedule, it is a line of the deployment; with the deployment gone too, pruning decides."""
    where = ("automations", "d__automation_1")
    live: dict[tuple[str, str], JsonValue] = {
        ("deployments", "d"): {"name": "d"},
        where: {"name": where[1], "owner": "deployment/d"},
    }
    written = {key: frozenset[str]() for key in live}
    kept = make_plan({("deployments", "d"): {"name": "d"}}, live, owned=written, written=written)
    assert [(s.key, s.change) for s in kept.changes] == [(where[1], Change.DELETE)]
    gone = make_plan({}, live, owned=written, written=written)
    assert not gone.changes


def test_a_flow_in_a_repository_need_not_be_here(write: Write) -> None:
    """Its deployment has no folder; what is written wrong in the source has its place."""
    text = "deployments:\n  a:\n    flow: flows/far.py:away\n    source: {url: https://example.org/flows.git, branch: main}\n"
    deployment = load_manifest(write(text)).records["deployments", "a"].value
    assert isinstance(deployment, dict)
    assert "path" not in deployment or deployment["path"] is None
    source = deployment["source"]
    assert isinstance(source, dict)
    assert (source["url"], source["branch"]) == ("https://example.org/flows.git", "main")
    with pytest.raises(ManifestInvalid, match="brnch"):
        load_manifest(write(text.replace("branch", "brnch")))
