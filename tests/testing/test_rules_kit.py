"""Rules in tests: events of one's own in virtual time, histories, and what would have been sent to people."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from textwrap import dedent

import orjson
import pytest
from hark.automations import Automation, Emit
from hark.bus.emit import emit
from hark.bus.event import Event
from hark.errors import DefinitionError, UnknownName
from hark.testing import capture_notifications, replay, rule_test, service

THREE = {"on": "order.paid", "count": 3, "within": "10m", "do": []}
FILE = """
automations:
  three:
    on: order.paid
    count: 3
    within: 10m
    do: [{notify: nobody-defined-here}]
    tests:
      - name: three in time
        given: [{type: order.paid}, {at: 1m, same: 0}, {at: 2m, same: 0}]
        expect: {fired: 1, at: 2m}
      - given: [{type: order.paid}, {at: 1m, same: 0}]
        expect: not fired
  beat: {expect: sensor.beat, within: 5m, do: []}
"""


def test_a_rule_is_tested_in_virtual_time() -> None:
    """Given as its settings, as a model, or as the file it stands in."""
    given: list[dict[str, object]] = [
        {"type": "order.paid"}, {"at": "1m", "same": 0}, {"at": "2m", "same": 0},
    ]  # fmt: skip
    (outcome,) = rule_test(THREE, given=given, expect={"fired": 1, "at": "2m"})
    assert [decision.what for decision in outcome.decisions] == ["triggered"]
    model = Automation(name="three", on="order.paid", count=3, within="10m", do=[Emit(emit="order.seen")])
    rule_test(model, given=given)
    rule_test(model, given=given[:2], expect="not fired")
    rule_test(
        {"expect": "sensor.beat", "within": "5m", "do": []}, given=[{"type": "sensor.beat"}], until="6m"
    )


def test_a_rule_that_decides_otherwise_fails_and_says_how_each_event_fared() -> None:
    """The message names what was expected, what happened, and the event that did not match."""
    with pytest.raises(AssertionError) as failed:
        rule_test(THREE, given=[{"type": "order.paid"}, {"at": "1m", "type": "order.lost"}])
    assert "expected to fire once, fired never" in str(failed.value)
    assert "event 1 at 1m (order.lost): no match" in str(failed.value)


def test_the_tests_inside_a_file_are_run_by_name(tmp_path: Path) -> None:
    """What the file refers to need not be defined in it; a name it does not have is an error that says so."""
    file = tmp_path / "orders.rules.yaml"
    file.write_text(FILE)
    assert len(rule_test(file, name="three")) == 2
    with pytest.raises(DefinitionError, match="has 2 rules"):
        rule_test(file)
    with pytest.raises(UnknownName, match="thre"):
        rule_test(file, name="thre")
    with pytest.raises(AssertionError, match="has no tests"):
        rule_test(file, name="beat")
    file.write_text("automations: {three: {on: order.paid, cuont: 3, do: []}}")
    with pytest.raises(DefinitionError, match="did you mean 'count'"):
        rule_test(file)


def test_a_history_is_replayed_through_rules(tmp_path: Path) -> None:
    """Events, mappings or a file of them; each rule's decisions come back, deadlines passed on the way."""
    at = datetime(2026, 3, 1, tzinfo=UTC)
    events = [
        Event(type="order.paid", source="/shop", time=at + timedelta(minutes=n), data={"n": n})
        for n in range(6)
    ]
    found = replay(events, THREE)
    assert found.rules["rule"].fired == 2
    lines = tmp_path / "history.ndjson"
    lines.write_bytes(b"\n".join(orjson.dumps(event.to_dict()) for event in events))
    rules = tmp_path / "hark.yaml"
    rules.write_text("automations: {quiet: {after: order.paid, expect: order.sent, within: 1h, do: []}}")
    assert replay(lines, rules).rules["quiet"].fired == 1
    assert replay(lines, rules, until="30m").rules["quiet"].fired == 0
    assert replay([{"type": "order.paid"}] * 3, THREE).rules["rule"].fired == 1
    with pytest.raises(DefinitionError, match="is no event"):
        replay([{"typ": "order.paid"}], THREE)


CONFIG = """
channels: {oncall: {urls: ["json://127.0.0.1:1/"]}}
automations:
  paid:
    on: order.paid
    do: [{notify: oncall, title: "order {{ event.data.n }}", severity: warning, retries: 0}]
"""


async def test_what_would_have_been_sent_is_caught_in_a_whole_service(tmp_path: Path) -> None:
    """From the event through the rule to the text a person would read; nothing leaves the process."""
    (tmp_path / "hark.yaml").write_text(CONFIG)
    with capture_notifications() as sent:
        async with service(tmp_path / "hark.yaml") as hark:
            assert hark.url.startswith("http://127.0.0.1:")
            await emit("order.paid", data={"n": 7})
            (message,) = await sent.arrived(1)
            assert (message.kind, message.title, message.severity) == ("json", "order 7", "warning")
            assert "127.0.0.1" not in repr(message)
            sent.fails = "the receiver is down"
            await emit("order.paid", data={"n": 8})
            async with hark.bus.log.follow(["hark.ev.action.>"], after=0) as batches:
                async for batch in batches:
                    if any("the receiver is down" in r.raw.decode() for r in batch.records):
                        break
        assert len(sent) == 1
        with pytest.raises(AssertionError, match="1 of 2 notifications"):
            sent.wait(2, timeout_s=0.01)


def pytest_in(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "hark.testing.plugin", *arguments],
        cwd=folder,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},  # those of others take a second each time
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_pytest_collects_the_tests_inside_rules(tmp_path: Path) -> None:
    """Each is an item with a name, a file and a line; one that fails says why, without a traceback."""
    (tmp_path / "orders.rules.yaml").write_text(FILE)
    done = pytest_in(tmp_path, "-v")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "orders.rules.yaml::three::three in time PASSED" in done.stdout
    assert "orders.rules.yaml::three::1 PASSED" in done.stdout
    (tmp_path / "hark.yaml").write_text(FILE.replace("fired: 1, at: 2m", "fired: 2"))
    done = pytest_in(tmp_path, "hark.yaml")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 1 passed" in done.stdout
    assert "hark.yaml:9:9: rule 'three'" in done.stdout, done.stdout
    assert "expected to fire 2 times, fired once" in done.stdout
    assert "Traceback" not in done.stdout
    assert pytest_in(tmp_path, "hark.yaml", "-k", "three and 1").returncode == 0


def test_pytest_says_what_is_wrong_with_a_file_of_rules(tmp_path: Path) -> None:
    """File, line, column and what was probably meant; other names are left alone, and it can be turned off."""
    (tmp_path / "bad.rules.yaml").write_text("automations:\n  three: {on: order.paid, cuont: 3, do: []}\n")
    (tmp_path / "other.yaml").write_text("anything: goes")
    done = pytest_in(tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "bad.rules.yaml:2:" in done.stdout
    assert "did you mean 'count'?" in done.stdout
    assert "other.yaml" not in done.stdout
    (tmp_path / "pytest.ini").write_text("[pytest]\nhark_rule_files =\n")
    assert pytest_in(tmp_path).returncode == 5


def test_the_plugin_imports_nothing_of_hark_until_it_is_used(tmp_path: Path) -> None:
    """It is loaded in every test session of everybody who has Hark installed."""
    (tmp_path / "test_it.py").write_text(
        dedent(
            """
            import sys

            def test_it():
                ours = {name for name in sys.modules if name.partition(".")[0] == "hark"}
                assert ours == {"hark", "hark.dotted", "hark.testing", "hark.testing.plugin"}, ours
                assert "pydantic" not in sys.modules
            """
        )
    )
    done = pytest_in(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
