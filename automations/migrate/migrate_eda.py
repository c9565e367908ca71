"""Rulebooks of Event-Driven Ansible as webhooks and rules. Pure.

A source that is a webhook becomes one; conditions become ``where``, throttles ``cooldown`` or ``debounce``. A playbook, job
template or module becomes a run of a deployment of that name, whose flow a person writes (it may call Ansible). Facts,
other sources and what the rule engine keeps between rules have no equivalent.

Source: ansible-rulebook documentation, "Conditions", "Actions", "Rules", "Sources" (1.1).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...bus.event import OWN_WORDS
from ..problem import Loc
from .migration import Converted, NotConverted, Sections, slug

__all__ = ["condition_to_where", "convert_rulebook"]

_TOKEN = re.compile(
    r"""\s*(?:(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<number>-?\d+(?:\.\d+)?)(?![\w.])|(?P<op>==|!=|>=|<=|<<|>|<|[()\[\],=])
    |(?P<word>[A-Za-z_][\w]*(?:\.[A-Za-z_]\w*|\[(?:\d+|"[^"]*"|'[^']*')\])*))""",
    re.VERBOSE,
)
_SIGNS = {"==": None, "!=": None, ">": "gt", ">=": "gte", "<": "lt", "<=": "lte"}
_RUNS = {
    "run_playbook": "playbook", "run_job_template": "job template", "run_workflow_template": "workflow template",
    "run_module": "module",
}  # fmt: skip
_UNITS = {"second": "s", "minute": "m", "hour": "h", "day": "d"}
_MAX_CHARS = 10_000


def convert_rulebook(value: object, sections: Sections | None = None) -> Converted:
    """Return the rulesets of a rulebook as sections of a configuration, with a note for all that has no equivalent.

    Args:
        sections: what was converted of other files, to which this is added under names of its own.
    """
    out = Converted({} if sections is None else sections)
    if not isinstance(value, list):
        out.lost((), "a rulebook is a list of rulesets")
        return out
    for i, ruleset in enumerate(value):
        if not isinstance(ruleset, Mapping) or not isinstance(ruleset.get("rules"), list):
            out.lost((i,), "this is no ruleset: it has no `rules`")
            continue
        try:
            types = _sources(out, ruleset, (i,))
        except NotConverted as exc:
            out.notes.append(exc.note)
            continue
        prefix = slug(str(ruleset.get("name") or ""), default=f"ruleset-{i + 1}")
        for j, rule in enumerate(ruleset["rules"]):
            loc: Loc = (i, "rules", j)
            if not isinstance(rule, Mapping):
                out.lost(loc, "this is no rule")
                continue
            name = slug(str(rule.get("name") or ""), default=f"{prefix}-{j + 1}")
            try:
                out.rule(name, _rule(out, rule, types, loc), loc)
            except NotConverted as exc:
                out.notes.append(exc.note)
    return out


def _sources(out: Converted, ruleset: Mapping[str, Any], loc: Loc) -> list[str]:
    """Convert sources to webhooks; return the types of the events that they make."""
    types = []
    for i, source in enumerate(_items(ruleset.get("sources"), (*loc, "sources"))):
        here = (*loc, "sources", i)
        if not isinstance(source, Mapping):
            out.lost(here, "this is no source")
            continue
        plugin = next((str(key) for key in source if key not in ("name", "filters")), "")
        options = source.get(plugin) if isinstance(source.get(plugin), Mapping) else {}
        short = plugin.rpartition(".")[2]
        name = slug(str(source.get("name") or short), default=f"source-{i + 1}")
        if source.get("filters"):
            out.lost((*here, "filters"), "filters of sources have no equivalent; use templates in `event:`")
        if short not in ("webhook", "alertmanager"):
            out.lost(
                here,
                f"the source {plugin!r} has no equivalent; emit its events, or read them as a NATS source",
            )
            continue
        hooks = out.sections.setdefault("webhooks", {})
        # `a.b` and `a-b` are two webhooks, and rules of one are not to hear the other.
        taken = {_type_of(one) for one in hooks}
        unique, number = name, 2
        while unique in hooks or _type_of(unique) in taken:
            unique, number = f"{name}-{number}", number + 1
        name, type_ = unique, _type_of(unique)
        verify: Any = "none"
        secret = re.sub(r"[^a-z0-9]+", "_", name)
        if "hmac_secret" in (options or {}):
            verify = _signed(options or {}, "{{ secrets." + secret + " }}")
            note = f"set the `hmac_secret` of the webhook {name!r}: `hark secrets set {secret}`"
            if "token" in (options or {}):
                note += "; the token is asked for no more"
            out.look((*here, plugin), note)
        elif "token" in (options or {}):
            verify = {"preset": "bearer", "secret": "{{ secrets." + secret + " }}"}
            out.look((*here, plugin), f"set the token of the webhook {name!r}: `hark secrets set {secret}`")
        else:
            out.look(here, f"the webhook {name!r} lets anybody send, as the source did; give it a `verify:`")
        if short == "alertmanager":
            out.look(
                here, "alerts come together in one event, under data.alerts; conditions hold for some alert"
            )
        hooks[name] = {"verify": verify, "event": {"type": type_}}
        types.append(type_)
    return types


def _signed(options: Mapping[str, Any], secret: str) -> dict[str, Any]:
    """Return the check of a signature; what is not written is as it is there."""
    header = str(options.get("hmac_header") or "x-hub-signature-256")
    made = {
        "preset": "hmac", "secret": secret, "header": header,
        "algorithm": str(options.get("hmac_algo") or "sha256"), "encoding": str(options.get("hmac_format") or "hex"),
    }  # fmt: skip
    # Whoever names the header so writes the algorithm before the signature; it may stand there anywhere.
    return {**made, "prefix": f"{made['algorithm']}="} if "hub-signature" in header.lower() else made


def _items(value: Any, loc: Loc) -> list[Any]:
    """Return a list as it is written; of nothing an empty one."""
    if value is not None and not isinstance(value, list):
        raise NotConverted(loc, f"a list is expected, got {value!r:.80}")
    return value or []


def _type_of(webhook: str) -> str:
    word = re.sub(r"[._]", "-", webhook)
    # `webhook` and the like are first words of Hark's own events.
    return f"{'eda-' if word in OWN_WORDS else ''}{word}.received"


def _rule(out: Converted, rule: Mapping[str, Any], types: list[str], loc: Loc) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if rule.get("enabled") is False:
        made["paused"] = True
    on: Any = types[0] if len(types) == 1 else types or [">"]
    made |= _condition(rule.get("condition"), on, (*loc, "condition"))
    throttle = rule.get("throttle")
    if isinstance(throttle, Mapping):
        made |= _throttle(out, throttle, made, (*loc, "throttle"))
    actions: list[tuple[Loc, Mapping[str, Any]]] = []
    if isinstance(rule.get("action"), Mapping):
        actions.append(((*loc, "action"), rule["action"]))
    for i, action in enumerate(rule.get("actions") or []):
        if isinstance(action, Mapping):
            actions.append(((*loc, "actions", i), action))
    made["do"] = [one for at, action in actions if (one := _action(out, action, at)) is not None]
    return made


def _condition(condition: Any, on: Any, loc: Loc) -> dict[str, Any]:
    if condition is True or condition == "true":
        return {"on": on}
    if isinstance(condition, str):
        where = condition_to_where(condition, loc)
        return {"on": on, "where": where}
    if not isinstance(condition, Mapping):
        raise NotConverted(loc, f"{condition!r:.60} is no condition")
    word = next((w for w in ("all", "any", "not_all") if w in condition), "")
    if word not in ("all", "any") or not isinstance(condition[word], list):
        raise NotConverted(loc, f"a condition under {word or next(iter(condition), '')!r} has no equivalent")
    wheres = [condition_to_where(str(one), (*loc, word, i)) for i, one in enumerate(condition[word])]
    if len(wheres) == 1:
        return {"on": on, "where": wheres[0]}
    if word == "any":
        return {"on": on, "where": {"any": wheres}}
    # Each of them by an event of its own, in any order, as there.
    within = _time(condition.get("timeout"), (*loc, "timeout")) or "2h"
    return {"all_of": [{"on": on, "where": where} for where in wheres], "within": within}


def _throttle(out: Converted, throttle: Mapping[str, Any], made: dict[str, Any], loc: Loc) -> dict[str, Any]:
    found: dict[str, Any] = {}
    paths = [
        _path(str(one), (*loc, "group_by_attributes", i))
        for i, one in enumerate(_items(throttle.get("group_by_attributes"), (*loc, "group_by_attributes")))
    ]
    if paths:
        found["for_each"] = paths[0] if len(paths) == 1 else paths
    if "once_within" in throttle:
        found["cooldown"] = _time(throttle["once_within"], (*loc, "once_within"))
    elif "once_after" in throttle:
        if "on" not in made:
            raise NotConverted(loc, "`once_after` of several conditions has no equivalent")
        wait = _time(throttle["once_after"], (*loc, "once_after"))
        found["debounce"] = {"quiet": wait, "max_wait": wait}
    elif "accumulate_within" in throttle and "threshold" in throttle:
        found |= {"count": throttle["threshold"], "within": _time(throttle["accumulate_within"], loc)}
    else:
        out.lost(loc, "this throttle has no equivalent")
    return found


def _time(text: Any, loc: Loc) -> str | None:
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+)\s*(milli)?(second|minute|hour|day)s?\s*", str(text))
    if not match:
        raise NotConverted(loc, f"{text!r} is no time such as `5 minutes`")
    return f"{match[1]}ms" if match[2] else f"{match[1]}{_UNITS[match[3]]}"


def _action(out: Converted, action: Mapping[str, Any], loc: Loc) -> dict[str, Any] | None:
    word = str(next(iter(action), ""))
    options = action.get(word)
    given: Mapping[str, Any] = options if isinstance(options, Mapping) else {}
    if word in ("none", "noop"):
        return None
    if word in _RUNS:
        title = str(given.get("name") or "")
        stem = title.rpartition("/")[2].removesuffix(".yml").removesuffix(".yaml")
        name = slug(stem, default=word.replace("_", "-"))
        out.look(loc, f"write a flow that runs the {_RUNS[word]} {title!r}, and a deployment {name!r} of it")
        made: dict[str, Any] = {"run": name}
        args = given.get("extra_vars") or given.get("module_args")
        job_args = given.get("job_args")
        if isinstance(job_args, Mapping):
            args = args or job_args.get("extra_vars")
        parameters = _templates(out, dict(args), loc) if isinstance(args, Mapping) else {}
        made["parameters"] = {**parameters, "event": "{{ event }}"}
        retries = given.get("retries")
        if isinstance(retries, int) and retries:
            out.look((*loc, word, "retries"), f"set `retries: {retries}` on the deployment {name!r}")
        return made
    if word == "post_event":
        event = given.get("event")
        if given.get("ruleset"):
            out.look((*loc, word), "events go to every rule here; there is no ruleset to post to")
        return {"emit": "eda.posted", "data": _templates(out, event, loc)}
    if word in ("print_event", "debug"):
        out.look(
            loc, f"`{word}` was left out: `hark events watch` and `hark explain` show events and firings"
        )
        return None
    raise_or_note = f"the action {word!r} has no equivalent"
    out.lost((*loc, word), raise_or_note)
    return None


def _templates(out: Converted, value: Any, loc: Loc) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _templates(out, one, loc) for key, one in value.items()}
    if isinstance(value, list):
        return [_templates(out, one, loc) for one in value]
    if not isinstance(value, str) or "{{" not in value:
        return value

    def renamed(match: re.Match[str]) -> str:
        try:
            return "event." + _path(match[0], loc)
        except NotConverted as exc:
            out.notes.append(exc.note)
            return match[0]

    return re.sub(
        r"\{\{.*?\}\}",
        lambda block: re.sub(r"\bevents?(?:\.\w+)+", renamed, block[0]),
        value,
        flags=re.DOTALL,
    )


def _path(text: str, loc: Loc) -> str:
    """Return Hark's path of ``event.payload.x``; what came with the request stands in ``data``."""
    steps = re.findall(r"[A-Za-z_]\w*|\[(?:\d+|\"[^\"]*\"|'[^']*')\]", text)
    if not steps or steps[0] not in ("event", "events"):
        raise NotConverted(
            loc, f"{text!r} is neither of the event nor a value; facts and variables have no equivalent"
        )
    rest = steps[2:] if steps[0] == "events" else steps[1:]
    if rest and rest[0] == "meta":
        raise NotConverted(
            loc, f"{text!r} reads what a source adds; write it into the webhook's `event.data`"
        )
    if rest and rest[0] == "payload":
        rest = rest[1:]
    elif rest and rest[0] == "alert":  # of the alertmanager source; a payload may have an `alert` of its own
        rest = ["alerts", *rest[1:]]
    path = "data"
    for step in rest:
        inner = step[1:-1].strip("\"'") if step.startswith("[") else step
        path += f".{inner}" if re.fullmatch(r"[\w-]+", inner) else f'["{inner}"]'
    return path


# --- conditions --------------------------------------------------------------------------------------------


def condition_to_where(text: str, loc: Loc = ()) -> dict[str, Any]:
    """Return the ``where`` of one condition.

    Raises:
        NotConverted: it uses what has no equivalent, or does not parse.
    """
    if len(text) > _MAX_CHARS:
        raise NotConverted(loc, f"a condition of {len(text)} characters is too long")
    parser = _Parser(text, loc)
    where = parser.either()
    if parser.peek() is not None:
        raise NotConverted(loc, f"{text!r:.120} cannot be read from {parser.peek()!r} on")
    return where


class _Parser:
    def __init__(self, text: str, loc: Loc) -> None:
        self.text, self.loc, self.at, self.depth = text, loc, 0, 0
        self.tokens: list[tuple[str, str]] = []
        place = 0
        while place < len(text.rstrip()):
            match = _TOKEN.match(text, place)
            if match is None or match.lastgroup is None:
                raise NotConverted(loc, f"{text!r:.120} cannot be read from {text[place : place + 20]!r} on")
            self.tokens.append((match.lastgroup, match[match.lastgroup]))
            place = match.end()

    def peek(self) -> str | None:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else None

    def take(self, *wanted: str) -> bool:
        if self.peek() in wanted and self.tokens[self.at][0] != "text":
            self.at += 1
            return True
        return False

    def need(self, wanted: str) -> None:
        if not self.take(wanted):
            raise NotConverted(self.loc, f"{self.text!r:.120}: {wanted!r} is missing before {self.peek()!r}")

    def either(self) -> dict[str, Any]:
        self.depth += 1
        if self.depth > 40:
            raise NotConverted(self.loc, "the condition nests too deeply")
        found = [self.both()]
        while self.take("or"):
            found.append(self.both())
        self.depth -= 1
        return found[0] if len(found) == 1 else {"any": found}

    def both(self) -> dict[str, Any]:
        found = [self.one()]
        while self.take("and"):
            found.append(self.one())
        merged: dict[str, Any] = {}
        for one in found:
            if merged.keys() & one.keys():
                return {"all": found}
            merged |= one
        return merged

    def one(self) -> dict[str, Any]:
        if self.take("not"):
            return {"not": self.one()}
        if self.take("("):
            inner = self.either()
            self.need(")")
            return inner
        if self.tokens[self.at : self.at + 1] and self.tokens[self.at][0] != "word":
            value, swapped = self.value(), self.take("in")
            if not swapped:
                raise NotConverted(
                    self.loc, f"{self.text!r:.120}: a value stands where the event's is compared"
                )
            return {self.path(): value}  # a value in a list of the event's
        path = self.path()
        sign = self.peek()
        if sign == "<<":
            raise NotConverted(
                self.loc,
                "an event that others are compared with (`<<`) has no equivalent; write a `sequence`",
            )
        if sign in _SIGNS and self.tokens[self.at][0] == "op":
            self.at += 1
            value = self.value()
            op = _SIGNS[str(sign)]
            if op is not None:
                return {path: {op: value}}
            return {path: value} if sign == "==" else {path: {"not": value}}
        if self.take("is"):
            return self.test(path, negated=self.take("not"))
        negated = self.take("not")
        if self.take("in", "contains"):
            wanted = self.value()
            return {path: {"not": wanted}} if negated else {path: wanted}
        if negated:
            raise NotConverted(self.loc, f"{self.text!r:.120}: `not` stands alone")
        return {path: True}

    def test(self, path: str, *, negated: bool) -> dict[str, Any]:
        word = self.peek()
        if self.take("defined"):
            return {path: {"exists": not negated}}
        if word not in ("match", "search", "regex"):
            raise NotConverted(self.loc, f"the test `is {word}` has no equivalent")
        self.at += 1
        self.need("(")
        pattern = self.value()
        fold = False
        while self.take(","):
            name = self.peek()
            self.at += 1
            self.need("=")
            flag = self.peek()
            self.at += 1
            if name != "ignorecase" or flag not in ("true", "True", "false", "False"):
                raise NotConverted(self.loc, f"the option {name!r} of `{word}` has no equivalent")
            fold = str(flag).lower() == "true"
        self.need(")")
        made: dict[str, Any] = {"regex": f"^(?:{pattern})" if word == "match" else str(pattern)}
        if fold:
            made["ignore_case"] = True
        return {path: {"not": made}} if negated else {path: made}

    def path(self) -> str:
        kind, text = self.tokens[self.at] if self.at < len(self.tokens) else ("", "")
        if kind != "word":
            raise NotConverted(self.loc, f"{self.text!r:.120} ends too early")
        self.at += 1
        return _path(text, self.loc)

    def value(self) -> Any:
        if self.at >= len(self.tokens):
            raise NotConverted(self.loc, f"{self.text!r:.120} ends too early")
        kind, text = self.tokens[self.at]
        self.at += 1
        if kind == "text":
            plain = (
                re.sub(r"\\(.)", r"\1", text[1:-1])
                if "\\" in text and "regex" not in self.text
                else text[1:-1]
            )
            return f"== '{plain}'" if re.match(r"[<>=!]", plain) else plain
        if kind == "number":
            return float(text) if "." in text else int(text)
        if text == "[":
            items = []
            while not self.take("]"):
                items.append(self.value())
                self.take(",")
            return items
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        if text in ("None", "null"):
            return None
        raise NotConverted(self.loc, f"{text!r} is compared with; only values that are written out can be")
