"""Lint over a whole file: what nobody means, each with its place and with what to write instead."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from hark.server.fault import Fault
from hark.server.lint import lint_manifest
from hark.server.manifest import check_manifest

FLOWS = """
from hark import flow

@flow
def etl(source: str, n: int = 1) -> None: ...

@flow
def free(n: int = 1) -> None: ...
"""

RULE = "automations: {{r: {{on: order.paid, {}, do: [{{emit: x.y}}]}}}}"
DO = "automations: {{r: {{on: order.paid, do: {}}}}}"
ON = "automations: {{r: {{on: {}, do: [{{emit: x.y}}]}}}}"
FLOW = "deployments: {{d: {{flow: f.py:{}}}}}"


@pytest.mark.parametrize(
    ("text", "spot", "words"),
    [
        (RULE.format('where: {data.amount: "=> 3"}'), '"=> 3', "did you mean '>= 3'"),
        (RULE.format('where: {data.amount: ">> 3"}'), '">> 3', "did you mean '> 3'"),
        (RULE.format('where: {data.amount: "= 3"}'), '"= 3', "did you mean '== 3'"),
        (RULE.format('where: {data.amount: ">3 and <5"}'), '">3 and', "between: [3, 5]"),
        (RULE.format("where: {amount: 3}"), "amount: 3", "data.amount"),
        (RULE.format('if: "1"'), '"1"', "never holds: it gave 1, not true or false; compare something"),
        (RULE.format('if: "nope(x)"'), '"nope', "there is no function 'nope'"),
        (RULE.format("if: \"data.name.startswith('a')\""), '"data.name', "did you mean 'startsWith'"),
        (RULE.format('if: "amount > 3"'), "if:", "data.amount"),
        (ON.format("flow-run.complete"), "flow-run.complete", "did you mean 'flow-run.completed'"),
        (ON.format("task-run.nonsense"), "task-run.non", "there are scheduled, late"),
        (ON.format("schedule.fire"), "on: schedule", "did you mean 'schedule.fired'"),
        (ON.format("worker.nonsense"), "on: worker", "there are lost, started, stopped of 'worker'"),
        (DO.format('[{emit: x.y, data: "{{ evnt.x }}"}]'), 'data: "{{', "did you mean 'event'"),
        (
            DO.format('[{emit: x.y, data: {a: ["{{ event.dta.x }}"]}}]'),
            '"{{ event.dta',
            "did you mean 'data'",
        ),
        (
            DO.format("[{emit: x.y, data: \"{% include 'a' %}\"}]"),
            '"{% inc',
            "no other templates that `include`",
        ),
        (DO.format("[{emit: x.y, data: \"{% import 'a' as b %}\"}]"), '"{% imp', "`import` could read"),
        (DO.format("emit"), "emit}}", "an action, or a list of them, such as [{notify: oncall}]"),
        (DO.format('{notify: "slak://a/b"}'), '"slak', "did you mean 'slack'"),
        (DO.format('[{notify: "slack+http://"}]'), '"slack+http', "it looks like slack+http://{host}/{path}"),
        ('notifications: {routes: [{to: "slak://a/b"}]}', '"slak', "did you mean 'slack'"),
        (DO.format('{call: "https://a.b/c", secret: hunter2}'), "secret:", "`hark secrets set NAME`"),
        (
            "automations: {r: {on: a.b, do: {emit: c.d}, tests: [{given: [{same: 3}], expect: fired}]}}",
            "3}],",
            "this is the first; give it a `type`",
        ),
        ("webhooks: {w: {verify: {preset: github, secret: abcdefg}}}", "secret:", "{{ secrets.w }}"),
        (
            'webhooks: {w: {verify: none, event: {type: "x.{{ boddy.kind }}"}}}',
            "type:",
            "did you mean 'body'",
        ),
        (
            'sources: {s: {subject: "a.>", event: {type: "x.{{ words[0] }}", time: "{{ bdy.x }}"}}}',
            "time:",
            "did you mean 'body'",
        ),
        (
            'deployments: {d: {flow: "f.py:etl", schedules: [{cron: "0 6 * * *"}]}}',
            "{cron",
            "the flow needs 'source', which neither the schedule nor the deployment gives",
        ),
        ('deployments: {d: {flow: "f.py:etl", triggers: [a.b]}}', "a.b", "neither the trigger nor"),
        (
            'deployments: {d: {flow: "f.py:etl", parameters: {source: a, n: many}}}',
            "many",
            "'n' takes an integer, got 'many'",
        ),
        (
            'deployments: {d: {flow: "f.py:free", schedules: [{interval: 1h, parameters: {m: 1}}]}}',
            "m: 1",
            "has no parameter 'm'",
        ),
        (
            'deployments: {d: {flow: "f.py:free"}}\nautomations: {r: {on: a.b, do: {run: d, parameters: {n: x}}}}',
            "x}}}}",
            "'n' takes an integer",
        ),
        (
            'deployments: {d: {flow: "f.py:free", concurrency: {limit: 1, key: "{{ params.n }}"}}}',
            "key:",
            "did you mean 'parameters'",
        ),
    ],
)
def test_what_nobody_means_is_told_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, spot: str, words: str
) -> None:
    """File, line, column, what is wrong and what to write instead."""
    told = _lint(tmp_path, monkeypatch, text)
    lines = text.splitlines()
    found = [f for f in told if words in f"{f.message}; {f.suggestion}"]
    assert [lines[f.at.line - 1][f.at.column - 1 :].startswith(spot) for f in found] == [True], told


@pytest.mark.parametrize(
    "text",
    [
        RULE.format('where: {data.amount: "== => 3", data.b: "<none>", data.c: "=a", data.d: ">>> x"}'),
        RULE.format("if: \"data.items.exists(i, i.n > 3) && subject.startsWith('a')\""),
        DO.format(
            '{emit: x.y, data: "{% for e in events %}{{ loop.index }}{{ e.id }}{% endfor %}{{ range(3) | list }}"}'
        ),
        DO.format('{emit: x.y, data: "{% set x = event.data %}{{ x.y }}, included or extended"}'),
        ON.format("[limit.anything, hark.anything, worker.*, deployment.backfill.started]"),
        'deployments: {d: {flow: "f.py:free", concurrency: 1, schedules: [{cron: "0 6 * * *"}]}}',
        'deployments: {d: {flow: "f.py:etl", parameters: {source: "{{ variables.x }}", n: "3"}, triggers: [a.b]}}',
        'deployments: {d: {flow: "f.py:etl", triggers: [{on: a.b, parameters: "{{ event.data }}"}]}}',
    ],
)
def test_what_is_meant_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Texts that only look like signs, names a template sets itself, events of parts that grow, templated parameters."""
    told = [f for f in _lint(tmp_path, monkeypatch, text) if "not indexed" not in f.message]
    assert told == []


def _lint(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> list[Fault]:
    monkeypatch.chdir(folder)
    Path("f.py").write_text(FLOWS)
    Path("hark.yaml").write_text(textwrap.dedent(text))
    manifest, faults = check_manifest(Path("hark.yaml"))
    return [*faults, *(lint_manifest(manifest) if not any(not f.is_warning for f in faults) else [])]


def test_of_a_file_with_a_wrong_part_nothing_is_called_unused(tmp_path: Path) -> None:
    """What uses a channel may stand in that part."""
    file = tmp_path / "hark.yaml"
    file.write_text(
        "channels: {ops: {urls: ['json://x']}}\nnotifications: {routes: [{to: ops, digest: 4s}]}\n"
    )
    manifest, faults = check_manifest(file)
    assert [f.message for f in faults if not f.is_warning] == ["a digest comes at most once a minute"]
    assert lint_manifest(manifest, whole=False) == []
    assert "anything" in str(lint_manifest(manifest))
