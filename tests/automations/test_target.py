"""What a rule's actions need, and is not there."""

from __future__ import annotations

from hark.automations.analysis.target import missing_targets
from hark.automations.model import parse_automation


def test_what_is_not_there_is_told_with_its_place() -> None:
    """Deployments, channels and what is paused; in branches too, and with a near name."""
    asked = {"approve": "oncal", "yes": [{"run": "gone"}], "otherwise": [{"resume": {"webhook": "shop"}}]}
    actions = [
        {"run": "etl"},
        {"run": "elt"},
        {"notify": ["ops", "lost"]},
        {"pause": {"schedule": "etl/9"}},
        asked,
    ]
    rule = parse_automation(
        {
            "on": "a.b",
            "resolve": {"after": "1m"},
            "do": actions,
            "on_resolve": [{"pause": {"automation": "r"}}],
        },
        name="r",
    )
    known = {
        "deployments": ["etl"],
        "channels": ["ops", "oncall"],
        "schedules": ["etl/0"],
        "automations": ["r"],
    }
    assert [str(problem) for problem in missing_targets(rule, known)] == [
        "do.1.run: there is no deployment named 'elt'; did you mean 'etl'?",
        "do.2.notify: there is no channel named 'lost'",
        "do.3.pause.schedule: there is no schedule named 'etl/9'; did you mean 'etl/0'?",
        "do.4.approve: there is no channel named 'oncal'; did you mean 'oncall'?",
        "do.4.yes.0.run: there is no deployment named 'gone'",
    ]


def test_what_is_known_only_when_it_fires_is_left_alone() -> None:
    """Templates, addresses and the routing tree."""
    actions = [
        {"run": "{{ event.data.x }}"}, {"notify": ["{{ event.data.x }}", "json://a.b", "routes"]}, {"notify": {"title": "x"}},
        {"pause": {"deployment": "{{ event.data.x }}"}},
    ]  # fmt: skip
    rule = parse_automation({"on": "a.b", "resolve": {"after": "1m"}, "do": actions}, name="r")
    assert missing_targets(rule, {"deployments": [], "channels": []}) == []
