"""What in a rule that stands is likely a mistake: told as warnings, never refused."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from ...template import template_paths, template_roots
from ...vocabulary import JsonValue
from ..acting.recipient import host_of, is_chosen_by_event
from ..action import Action, Approve, Call, Emit, Notify, Run
from ..matching.comparison import Comparison
from ..matching.condition import Compare, Exists, Node, Not
from ..matching.expression import compile_expression, odd_names
from ..matching.matcher import indexed_by, pattern_covers
from ..matching.path import ATTRIBUTES, Path, parse_path, show_path
from ..matching.where import leaves
from ..model import Automation
from ..problem import Loc, did_you_mean
from ..reference import RESERVED
from .own_event import never_emitted

__all__ = ["Warned", "lint_automation", "templates_in"]


@dataclass(frozen=True, slots=True)
class Warned:
    """A warning about a rule. ``loc`` are the keys that lead to what it is about; ``hint`` says what to do."""

    loc: Loc
    message: str
    hint: str = ""

    def __str__(self) -> str:
        where = ".".join(str(part) for part in self.loc)
        return f"{where}: {self.message}" + (f"; {self.hint}" if self.hint else "")


def lint_automation(
    automation: Automation, *, known: Mapping[str, Collection[str]] | None = None
) -> list[Warned]:
    """Return what is likely wrong with a rule that stands.

    Args:
        known: names that exist, by bucket (``deployments``, ``channels``); a bucket that is not given is not checked.
    """
    return [
        *_matching(automation),
        *_actions(automation, known or {}),
        *_texts(automation),
        *_timing(automation),
    ]


def _matching(automation: Automation) -> Iterator[Warned]:
    for listening in (*automation.listens, *((automation.resolves,) if automation.resolves else ())):
        loc, types, node = listening.loc, listening.types, listening.node
        if listening.ifs:
            yield Warned(
                ("if",) if automation.if_ is not None else (*loc, "if"),
                "`if` is not indexed: it is evaluated for every event that gets as far as it",
                "say in `where` what can be said there",
            )
        if not indexed_by(types, node, has_if=bool(listening.ifs)):
            yield Warned(
                loc,
                "nothing to look this rule up by: it is checked for every event of every type",
                "name the event types, or a value that has to be equal",
            )
        for type_ in types:
            if hint := never_emitted(type_):
                place = loc if loc[-1:] == ("on",) else (*loc, "on")
                yield Warned(place, f"Hark never emits {type_!r}", hint)
        for text in listening.ifs:
            for name in odd_names(compile_expression(text)):
                yield Warned(
                    ("if",) if automation.if_ is not None else (*loc, "if"),
                    f"{name!r} is no usual event attribute",
                    f"fields of the payload begin with data: data.{name}",
                )
        for message in _contradictions(node):
            yield Warned(("where",), message, "the rule can never fire")
    for path in automation.key_paths:
        if len(path) == 1 and path[0] not in ATTRIBUTES:
            yield Warned(
                ("for_each",),
                f"{path[0]!r} is no usual event attribute",
                f"fields of the payload begin with data: data.{path[0]}",
            )
    for key in automation.where or {}:
        if key in ("any", "all", "not"):
            continue
        path = parse_path(key)
        if len(path) == 1 and path[0] not in ATTRIBUTES:
            hint = (
                did_you_mean(path[0], ATTRIBUTES).removeprefix("; ")
                or f"fields of the payload begin with data: data.{path[0]}"
            )
            yield Warned(("where", key), f"{key!r} is no usual event attribute", hint)


def _contradictions(node: Node | None) -> Iterator[str]:
    """Yield pairs of conditions on one single-valued path that cannot both hold. Cheap ones only."""
    by_path: dict[Path, list[Comparison]] = {}
    absent: set[Path] = set()
    refused: dict[Path, list[Comparison]] = {}
    for leaf in leaves(node):
        match leaf:
            case Compare(path, tests):
                by_path.setdefault(path, []).extend(tests)
            case Exists(path, wanted) if not wanted:
                absent.add(path)
            case Not(Compare(_, (test,)), path) if path is not None and test.op == "in":
                refused.setdefault(path, []).append(test)
    for path, wanted_tests in by_path.items():
        shown = show_path(path)
        if any(path[: len(gone)] == gone for gone in absent):
            yield f"{shown} has to be there and not to be there"
        low = max(
            (t.operand[0] for t in wanted_tests if t.op in ("gt", "gte") and not hasattr(t.operand[0], "at")),
            default=None,
        )
        high = min(
            (t.operand[0] for t in wanted_tests if t.op in ("lt", "lte") and not hasattr(t.operand[0], "at")),
            default=None,
        )
        if low is not None and high is not None and low > high and len(path) == 1:
            yield f"{shown} has to be above {low} and below {high}"
        for test in wanted_tests:
            if test.op == "in" and any(
                set(map(repr, test.operand)) <= set(map(repr, no.operand)) for no in refused.get(path, ())
            ):
                yield f"{shown} has to be {' or '.join(map(repr, test.operand))} and must not be"


def _actions(automation: Automation, known: Mapping[str, Collection[str]]) -> Iterator[Warned]:
    if not automation.do and not automation.on_resolve:
        yield Warned(
            ("do",),
            "the rule does nothing when it fires",
            "add `do:`, or leave it as a record of what happened",
        )
    for word, actions in (("do", automation.do), ("on_resolve", automation.on_resolve)):
        for i, action in enumerate(actions):
            yield from _action(automation, action, (word, i), known)


def _action(
    automation: Automation, action: Action, loc: Loc, known: Mapping[str, Collection[str]]
) -> Iterator[Warned]:
    if isinstance(action, Notify) and any(is_chosen_by_event(path) for path in action.attach):
        yield Warned(
            (*loc, "attach"),
            "whoever sends the event chooses which file is sent",
            "write the path out",
        )
    match action:
        case Run(run=name) if (
            "deployments" in known and "{{" not in name and name not in known["deployments"]
        ):
            yield Warned(
                (*loc, "run"),
                f"there is no deployment named {name!r}",
                did_you_mean(name, known["deployments"]).removeprefix("; "),
            )
        case Notify(notify=channels) | Approve(approve=channels):
            for name in channels:
                if is_chosen_by_event(name):
                    yield Warned(
                        (*loc, action.word),
                        "whoever sends the event chooses who is told",
                        "write the channel out, or have one rule for each; an address in the event is refused",
                    )
                elif (
                    "channels" in known
                    and "{{" not in name
                    and "://" not in name
                    and name not in known["channels"]
                ):
                    yield Warned(
                        (*loc, action.word),
                        f"there is no channel named {name!r}",
                        did_you_mean(name, known["channels"]).removeprefix("; "),
                    )
        case Call(call=address, secret=secret):
            if is_chosen_by_event(host_of(address)):
                yield Warned(
                    (*loc, "call"),
                    "whoever sends the event chooses who is called",
                    "write the host out, or have one rule for each; what comes behind the host may be the event's",
                )
            if secret is not None and "{{" not in secret:
                yield Warned(
                    (*loc, "secret"),
                    "the secret is written out in the rule, where it can be read",
                    "keep it with `hark secrets set NAME` and write {{ secrets.NAME }}",
                )
        case Emit(emit=type_) if (
            "{{" not in type_ and automation.on and any(pattern_covers(p, type_) for p in automation.on)
        ):
            yield Warned(
                (*loc, "emit"),
                f"the rule emits {type_!r}, which it reacts to itself",
                "it stops at the causal depth limit; use another type, or a `where` that leaves it out",
            )


def _texts(automation: Automation) -> Iterator[Warned]:
    """Yield the names that templates of actions read and nothing gives."""
    named = automation.step_names
    known = RESERVED | named
    for word, actions in (("do", automation.do), ("on_resolve", automation.on_resolve)):
        for i, action in enumerate(actions):
            written = action.model_dump(mode="json", by_alias=True, exclude_defaults=True)
            for loc, text in templates_in(written, (word, i)):
                for root in sorted(template_roots(text) - known):
                    hint = (
                        did_you_mean(root, known).removeprefix("; ")
                        or f"there are {', '.join(sorted(known))}"
                    )
                    yield Warned(loc, f"templates know no {root!r}", hint)
                for chain in sorted(template_paths(text)):
                    if chain[0] in {"event", *named} and len(chain) > 1 and chain[1] not in ATTRIBUTES:
                        shown = ".".join(chain[:2])
                        hint = did_you_mean(chain[1], ATTRIBUTES).removeprefix("; ")
                        yield Warned(
                            loc,
                            f"{shown!r}: {chain[1]!r} is no usual event attribute",
                            hint or f"fields of the payload begin with data: {chain[0]}.data.{chain[1]}",
                        )


def templates_in(value: JsonValue, loc: Loc) -> Iterator[tuple[Loc, str]]:
    """Yield the texts inside a JSON value that are templates, with their places."""
    if isinstance(value, str):
        if "{{" in value or "{%" in value:
            yield loc, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from templates_in(key, loc)
            yield from templates_in(item, (*loc, key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from templates_in(item, (*loc, i))


def _timing(automation: Automation) -> Iterator[Warned]:
    if (
        automation.cooldown is not None
        and automation.for_each is None
        and automation.on is not None
        and any(t[-1] in "*>" for t in automation.on)
    ):
        yield Warned(
            ("cooldown",),
            "one cooldown for all events of several types",
            "use `for_each` for one per thing the events are about",
        )
    if automation.after is not None and automation.for_each is None:
        yield Warned(
            ("for_each",),
            "without `for_each` any expected event answers any opening one",
            "name what they have in common: for_each: subject",
        )
