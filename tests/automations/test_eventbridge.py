"""Event patterns of EventBridge as rules: the documented operators, against events that match and that do not."""

from __future__ import annotations

from typing import Any

import pytest
from hark.automations.eventbridge import convert_pattern
from hark.automations.matching.where import compile_where
from hark.automations.model import Automation
from pydantic import ValidationError


def matches(pattern: dict[str, Any], detail: Any, **attributes: Any) -> bool:
    on, where = convert_pattern(pattern)
    event = {"type": "x.y", "source": "aws.ec2", "id": "1", "data": detail, **attributes}
    return (on == [">"] or event["type"] in on) and (not where or compile_where(where)(event))


@pytest.mark.parametrize(
    ("detail", "yes", "no"),
    [
        ({"state": ["stopped", "terminated"]}, [{"state": "stopped"}], [{"state": "running"}, {}]),
        ({"a": {"b": ["x"]}, "c": [1]}, [{"a": {"b": "x"}, "c": 1}], [{"a": {"b": "x"}}, {"c": 1}]),
        ({"tags": ["a"]}, [{"tags": ["b", "a"]}], [{"tags": ["b"]}, {"tags": []}]),
        ({"n": [None]}, [{"n": None}], [{"n": 0}, {}]),
        ({"n": [{"numeric": [">", 0, "<=", 5]}]}, [{"n": 5}, {"n": 0.1}], [{"n": 0}, {"n": 6}, {"n": "3"}]),
        ({"n": [{"numeric": ["=", 3]}]}, [{"n": 3.0}], [{"n": 4}]),
        ({"s": [{"prefix": "eu-"}]}, [{"s": "eu-1"}], [{"s": "us-1"}, {"s": 1}]),
        ({"s": [{"prefix": {"equals-ignore-case": "EU-"}}]}, [{"s": "eu-1"}], [{"s": "us"}]),
        ({"s": [{"suffix": ".png"}]}, [{"s": "a.png"}], [{"s": "png"}]),
        ({"s": [{"equals-ignore-case": "Alice"}]}, [{"s": "aLICE"}], [{"s": "bob"}]),
        ({"s": [{"equals-ignore-case": "Alice"}, "Bob", {"wildcard": "c*"}]}, [{"s": "aLICE"}, {"s": "Bob"}, {"s": "cy"}], [{"s": "bob"}]),
        ({"s": [{"anything-but": {"equals-ignore-case": ["a", "b"]}}]}, [{"s": "c"}], [{"s": "A"}, {"s": "b"}]),
        ({"s": [{"wildcard": "dir/*/a.b\\*"}]}, [{"s": "dir/x/y/a.b*"}], [{"s": "dir/x/aXb*"}, {"s": "dir/x/a.bc"}]),
        ({"s": [{"anything-but": ["a", "b"]}]}, [{"s": "c"}], [{"s": "a"}, {}]),
        ({"s": [{"anything-but": {"prefix": "init"}}]}, [{"s": "run"}], [{"s": "initial"}]),
        ({"s": [{"anything-but": {"wildcard": ["*.tmp", "*.bak"]}}]}, [{"s": "a.txt"}], [{"s": "a.tmp"}, {"s": "b.bak"}]),
        ({"s": [{"exists": False}]}, [{}], [{"s": 1}]),
        ({"s": ["a", {"exists": False}]}, [{}, {"s": "a"}], [{"s": "b"}]),
        ({"ip": [{"cidr": "10.0.0.0/24"}]}, [{"ip": "10.0.0.9"}], [{"ip": "10.0.1.9"}]),
        ({"$or": [{"c": [1]}, {"d": [2], "e": [3]}]}, [{"c": 1}, {"d": 2, "e": 3}], [{"d": 2}]),
        ({"$or": [{"a": [1]}, {"b": [1]}], "x": {"$or": [{"c": [1]}, {"d": [1]}]}}, [{"a": 1, "x": {"d": 1}}], [{"a": 1, "x": {}}]),
        ({"a.b": ["x"], "c d": ["y"]}, [{"a.b": "x", "c d": "y"}], [{"a": {"b": "x"}, "c d": "y"}]),
        ({"s": [">= 2"]}, [{"s": ">= 2"}], [{"s": 3}]),
    ],
)  # fmt: skip
def test_every_operator_means_what_it_means_there(detail: Any, yes: list[Any], no: list[Any]) -> None:
    """Each documented operator, with events on both sides of it."""
    pattern = {"source": ["aws.ec2"], "detail": detail}
    assert [matches(pattern, one) for one in yes] == [True] * len(yes)
    assert [matches(pattern, one) for one in no] == [False] * len(no)
    assert not any(matches(pattern, one, source="aws.s3") for one in yes)


def test_a_detail_type_is_the_type_or_what_the_sender_wrote() -> None:
    """Plain ones become `on`; AWS's sentences are found in originaltype."""
    assert convert_pattern({"detail-type": ["order.paid", "order.sent"]}) == (
        ["order.paid", "order.sent"],
        {},
    )
    sentence = "EC2 Instance State-change Notification"
    pattern = {"detail-type": [sentence], "detail": {"state": ["stopped"]}}
    assert matches(pattern, {"state": "stopped"}, originaltype=sentence)
    assert not matches(pattern, {"state": "stopped"})
    assert matches({"detail-type": ["order.paid", sentence]}, {}, type="order.paid")


def test_a_rule_takes_a_pattern() -> None:
    """It is stored as `on` and `where`, and beside `on` it narrows that; both at once with `where` is refused."""
    rule = Automation.model_validate(
        {"name": "r", "pattern": {"source": ["s"], "detail": {"n": [1]}}, "do": []}
    )
    assert (rule.on, rule.where) == ((">",), {"source": "s", "data.n": 1})
    rule = Automation.model_validate({"name": "r", "on": "a.*", "pattern": {"detail": {"n": [1]}}, "do": []})
    assert (rule.on, rule.where) == (("a.*",), {"data.n": 1})
    with pytest.raises(ValidationError, match="not both"):
        Automation.model_validate({"name": "r", "pattern": {"source": ["s"]}, "where": {"id": "1"}})


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ({}, "an event pattern is"),
        ({"resources": ["arn"]}, "no place"),
        ({"detial": {"a": [1]}}, "unknown field"),
        ({"detail": {"a": 1}}, "a list of values"),
        ({"detail": {"a": []}}, "never match"),
        ({"detail": {"a": [{"preffix": "x"}]}}, "unknown operator"),
        ({"detail": {"a": [{"numeric": [">"]}]}}, "numeric"),
        ({"detail": {"a": [{"numeric": [">", "1"]}]}}, "not a number"),
        ({"detail": {"$or": [{"a": [1]}]}}, "at least two"),
    ],
)
def test_what_is_no_pattern_is_refused(pattern: Any, says: str) -> None:
    """With its place and what is known."""
    with pytest.raises(ValidationError, match=says):
        Automation.model_validate({"name": "r", "pattern": pattern})
