"""`hark migrate`: what it writes loads, and what it could not convert is listed with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hark.cli.main import app
from hark.server.manifest import check_manifest
from typer.testing import CliRunner

PREFECT = """\
automations:
  - name: Prod failed
    trigger:
      type: event
      expect: [prefect.flow-run.Failed]
      match_related:
        prefect.resource.id: prefect.tag.prod
        prefect.resource.role: tag
    actions:
      - type: run-deployment
        deployment_id: 11111111-2222-3333-4444-555555555555
      - type: declare-incident
  - name: Pool down
    trigger:
      type: event
      expect:
        - prefect.work-pool.not-ready
    actions: []
"""
RULEBOOK = """\
- name: Web
  hosts: all
  sources:
    - name: hook
      ansible.eda.webhook: {port: 5000}
  rules:
    - name: Restart
      condition: event.payload.status == "down"
      action:
        run_playbook: {name: restart.yml}
    - name: Facts
      condition: facts.x == 1
      action: {none: {}}
"""


def test_prefect_automations_are_written_as_a_configuration(tmp_path: Path) -> None:
    """A rule that loads; the lost action and the lost automation by file, line and column; --strict is exit 1."""
    source, out = tmp_path / "automations.yaml", tmp_path / "hark.yaml"
    source.write_text(PREFECT)
    made = CliRunner().invoke(app, ["migrate", "prefect", str(source), "-o", str(out)])
    assert made.exit_code == 0, made.output
    live = {"deployments": {"deployment-11111111"}}
    manifest, faults = check_manifest(out, live=live)
    assert [str(fault) for fault in faults if not fault.is_warning] == []
    assert manifest.names("automations") == ["prod-failed"]
    lines = made.stderr.splitlines()
    assert any(f"{source}:12:" in line and "declare-incident" in line for line in lines), made.stderr
    assert any(f"{source}:17:" in line and "work-pool.not-ready" in line for line in lines), made.stderr
    assert any(f"{source}:10:" in line and "put the name of the deployment" in line for line in lines), (
        made.stderr
    )
    assert lines[-1] == "1 converted, 2 not converted, 1 to look at"
    again = CliRunner().invoke(app, ["migrate", "prefect", str(source), "-o", str(out)])
    assert (again.exit_code, "is there already" in again.stderr) == (2, True)
    assert CliRunner().invoke(app, ["migrate", "prefect", str(source), "--strict"]).exit_code == 1


def test_rulebooks_of_a_folder_are_written_as_one_configuration(tmp_path: Path) -> None:
    """Webhooks and rules of each file, names made unique; JSON says the same to machines."""
    for name in ("a.yml", "b.yml"):
        (tmp_path / name).write_text(RULEBOOK)
    made = CliRunner().invoke(app, ["migrate", "eda", str(tmp_path), "--json"])
    assert made.exit_code == 0, made.output
    value = json.loads(made.stdout)
    assert list(value["config"]["automations"]) == ["restart", "restart-2"]
    # Sources of one name in two files are two, and each file's rules hear their own.
    webhooks, rules = value["config"]["webhooks"], value["config"]["automations"]
    assert [hook["event"]["type"] for hook in webhooks.values()] == ["hook.received", "hook-2.received"]
    assert [rule["on"] for rule in rules.values()] == ["hook.received", "hook-2.received"]
    [lost, _] = [note for note in value["notes"] if note["lost"]]
    assert (lost["file"], lost["line"]) == (str(tmp_path / "a.yml"), 12)
    text = CliRunner().invoke(app, ["migrate", "eda", str(tmp_path / "a.yml")])
    out = tmp_path / "out" / "hark.yaml"
    out.parent.mkdir()
    out.write_text(text.stdout)
    _, faults = check_manifest(out, live={"deployments": {"restart"}})
    assert [str(fault) for fault in faults if not fault.is_warning] == []


def test_a_source_without_a_name_becomes_a_webhook_that_loads(tmp_path: Path) -> None:
    """What is called `webhook` there makes events of a type that Hark does not keep for itself."""
    book, out = tmp_path / "book.yml", tmp_path / "hark.yaml"
    book.write_text(RULEBOOK.replace("    - name: hook\n      ansible", "    - ansible"))
    text = CliRunner().invoke(app, ["migrate", "eda", str(book)])
    out.write_text(text.stdout)
    manifest, faults = check_manifest(out, live={"deployments": {"restart"}})
    assert [str(fault) for fault in faults if not fault.is_warning] == []
    assert ("webhooks", "webhook") in manifest.records
    assert "&id" not in text.stdout


@pytest.mark.parametrize("words", [["prefect", "nowhere.yaml"], ["eda", "."]])
def test_what_is_not_there_is_said(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 2, and what was looked for."""
    monkeypatch.chdir(tmp_path)
    made = CliRunner().invoke(app, ["migrate", *words])
    assert (made.exit_code, "no file" in made.stderr) == (2, True)


def test_a_configuration_may_hold_an_event_pattern(tmp_path: Path) -> None:
    """`pattern:` loads as `on` and `where`; a wrong one is a fault with its place."""
    file = tmp_path / "hark.yaml"
    file.write_text(
        'automations:\n  r:\n    pattern: {source: [s], detail: {n: [{numeric: [">", 90]}]}}\n    do: []\n'
    )
    manifest, faults = check_manifest(file)
    assert [str(fault) for fault in faults if not fault.is_warning] == []
    record = manifest.records["automations", "r"]
    assert isinstance(record.value, dict)
    assert (record.value["on"], record.value["where"]) == ([">"], {"source": "s", "data.n": {"gt": 90}})
    file.write_text(
        "automations:\n  r:\n    pattern:\n      detail:\n        n: [{preffix: x}]\n    do: []\n"
    )
    _, faults = check_manifest(file)
    [fault] = [one for one in faults if not one.is_warning]
    assert "unknown operator 'preffix'" in fault.message
    assert fault.at.line in (3, 4, 5)


@pytest.mark.parametrize(
    ("tool", "text", "why"),
    [
        ("eda", "a: 1", "a rulebook is a list of rulesets"),
        ("eda", "- {name: x, hosts: all, tasks: []}", "it has no `rules`"),
        ("eda", "- {name: x, rules: [{name: y, condition: facts.x == 1}]}", "have no equivalent"),
        ("prefect", "a: 1", "it has no `trigger`"),
        ("prefect", "", "0 converted"),
        ("airflow", "print(1)", "there is no DAG in it"),
    ],
)
def test_a_file_with_nothing_to_convert_is_a_failure(tool: str, text: str, why: str, tmp_path: Path) -> None:
    """It says why, writes nothing, and exits 1: a script that goes on would deploy an empty configuration."""
    source, out = tmp_path / ("x.py" if tool == "airflow" else "x.yaml"), tmp_path / "out"
    source.write_text(text)
    made = CliRunner().invoke(app, ["migrate", tool, str(source), "-o", str(out)])
    assert made.exit_code == 1, made.output
    assert why in made.stderr
    assert made.stderr.endswith("so nothing was written\n")
    assert not out.exists()
    machine = CliRunner().invoke(app, ["migrate", tool, str(source), "--json"])
    assert (machine.exit_code, json.loads(machine.stdout)["config"]) in ((1, {}), (1, {"automations": {}}))
