"""`/openapi.json` says of every route what it takes, what it answers and how it refuses; and the server does as it says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import combinations
from typing import Any

import pytest
from hark.automations.model import Automation
from hark.errors import DefinitionError
from hark.server.app import make_app
from hark.server.context import ServerContext
from hark.server.routes import (
    alerts,
    approvals,
    automations,
    backfills,
    config,
    deployments,
    judging,
    limits,
    runs,
    silences,
    values,
)
from hark.server.taken import Taken, body_as
from pydantic import ValidationError

from .conftest import Start

CONFIG = """
deployments:
  etl: {flow: flows.py:etl, schedules: [{cron: "0 6 * * *"}]}
automations:
  first: {on: a.b, do: [{emit: {type: c.d}}]}
webhooks: {one: {verify: none}}
channels: {one: {urls: ["json://127.0.0.1:9/x"]}}
pools: {default: {}}
limits: {one: {slots: 1}}
variables: {region: eu}
sinks: {one: {on: x.y, nats: {subject: x.y}}}
sources: {one: {subject: o.a, event: {type: o.a}}}
"""
MODULES: list[Any] = [
    alerts, approvals, automations, backfills, config, deployments, judging, limits, runs, silences, values,
]  # fmt: skip
NAMES = {
    "/api/schedules/{key}": "etl/0", "/api/deployments/{name}": "etl", "/api/automations/{name}": "first",
    "/api/variables/{name}": "region", "/api/pools/{name}": "default", "/api/secrets/{name}": "token",
}  # fmt: skip


def document() -> dict[str, Any]:
    """Return the document without a service."""
    found: dict[str, Any] = make_app(object.__new__(ServerContext)).openapi()
    return found


def operations(doc: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield method, path and what is said of each route."""
    for path, methods in doc["paths"].items():
        for method, said in methods.items():
            yield method.upper(), path, said


def refs(value: Any) -> Iterator[str]:
    """Yield every reference in a document."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for below in value.values():
            yield from refs(below)
    elif isinstance(value, list):
        for below in value:
            yield from refs(below)


def test_every_route_says_what_it_takes_answers_and_refuses() -> None:
    """A schema for each good answer but 204, a problem for each other; parameters of its path; no reference dangles."""
    doc = document()
    for method, path, said in operations(doc):
        good = {s: r for s, r in said["responses"].items() if s.startswith("2")}
        bad = {s: r for s, r in said["responses"].items() if not s.startswith("2")}
        assert good, (method, path)
        assert all("content" in r for s, r in good.items() if s != "204"), (method, path)
        for content in (media for r in good.values() for media in r.get("content", {}).values()):
            assert "schema" in content, (method, path)
        for status, answer in bad.items():
            assert [*answer["content"]] == ["application/problem+json"], (method, path, status)
            assert answer["description"], (method, path, status)
        if path.startswith("/api/"):
            assert {"401", "421", "503"} <= bad.keys(), (method, path)
            assert "404" in bad or "{" not in path, (method, path)
        if "requestBody" in said:
            assert {"413", "422"} <= bad.keys(), (method, path)
        of_path = {p["name"] for p in said.get("parameters", ()) if p["in"] == "path"}
        assert of_path == set(re.findall(r"{(\w+)}", path)), (method, path)
        assert said["description"], (method, path)
    kept = doc["components"]["schemas"]
    assert {r.rpartition("/")[2] for r in refs(doc)} <= kept.keys()


def taken_by(route: Any) -> list[Taken[Any]]:
    """Return what a route reads as its body."""
    return [one.call for one in route.dependant.dependencies if isinstance(one.call, Taken)]


def test_a_body_that_a_route_reads_stands_in_the_document() -> None:
    """Nothing reads a body on the quiet: what calls for one is a model, with an example, or named here."""
    doc = document()
    shown = {f"{m} {p}" for m, p, said in operations(doc) if "requestBody" in said}
    taking = {
        f"{method} {route.path_format}"
        for module in MODULES
        for route in module.router.routes
        if taken_by(route)
        for method in route.methods
    }
    assert len(taking) > 20
    assert shown - taking == {"POST /api/events", "PUT /api/automations/{name}", "POST /hooks/{name}"}
    assert taking <= shown


# --- does the server do as it says? ---------------------------------------------------------------------------


def resolved(schema: dict[str, Any], doc: dict[str, Any]) -> dict[str, Any]:
    """Return a schema, followed to where it stands."""
    while "$ref" in schema:
        schema = doc["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


TYPES: dict[str, Any] = {
    "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None),
}  # fmt: skip


def wrong(value: Any, schema: dict[str, Any], doc: dict[str, Any], at: str = "") -> str:
    """Return where a value is not what its schema says; nothing if it is."""
    schema = resolved(schema, doc)
    if "anyOf" in schema and "properties" not in schema:
        tried = [wrong(value, one, doc, at) for one in schema["anyOf"]]
        return "" if "" in tried else tried[0]
    kind = schema.get("type")
    if kind is not None:
        fits = isinstance(value, TYPES[kind]) and not (
            kind in ("integer", "number") and isinstance(value, bool)
        )
        if not fits:
            return f"{at}: {value!r:.80} is no {kind}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{at}: {value!r:.80} is none of {schema['enum']}"
    if kind == "array":
        return next((w for v in value if (w := wrong(v, schema.get("items", {}), doc, f"{at}[]"))), "")
    if kind == "object":
        known = schema.get("properties", {})
        missing = set(schema.get("required", ())) - value.keys()
        if missing:
            return f"{at}: without {sorted(missing)}"
        more = schema.get("additionalProperties", {})
        for name, below in value.items():
            if name not in known and more is False:
                return f"{at}: {name} is not known"
            child = known.get(name, more if isinstance(more, dict) else {})
            if found := wrong(below, child, doc, f"{at}.{name}"):
                return found
    return ""


SAMPLES: dict[str, Any] = {
    "object": {}, "array": [], "string": "x", "integer": 1, "number": 1.5, "boolean": True, "null": None
}  # fmt: skip


def sample(schema: dict[str, Any], doc: dict[str, Any]) -> Iterator[Any]:
    """Yield values that a schema allows."""
    schema = resolved(schema, doc)
    if "anyOf" in schema:
        for one in schema["anyOf"]:
            yield from sample(one, doc)
    elif "enum" in schema or "const" in schema:
        yield from schema.get("enum", [schema.get("const")])
    elif "examples" in schema and schema.get("type") == "string":
        yield from schema["examples"]
    elif schema.get("format") == "date-time":
        yield (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    elif "pattern" in schema:
        yield from (v for v in ("log:x", "100/m", "x") if re.search(schema["pattern"], v))
    elif schema.get("required"):
        yield {name: next(sample(schema["properties"][name], doc)) for name in schema["required"]}
    elif schema.get("type") == "array":
        yield [next(sample(schema.get("items", {}), doc))]
    elif "type" in schema:
        yield (
            max(SAMPLES[schema["type"]], schema.get("minimum", 0))
            if "minimum" in schema
            else SAMPLES[schema["type"]]
        )
    else:
        yield {"any": ["thing"]}


def misfits(schema: dict[str, Any], doc: dict[str, Any]) -> Iterator[Any]:
    """Yield values that a schema does not allow."""
    yield from (
        v for v in ({"no": 1}, ["no", {}], "no such thing", {"no": {"no": 1}}) if wrong(v, schema, doc)
    )


def path_of(path: str, run_id: str) -> str:
    """Return a path with names that are there, where there are any."""
    for begin, name in NAMES.items():
        if path.startswith(begin):
            path = path.replace(begin[begin.index("{") :], name)
    return re.sub(r"{\w+}", "one", path.replace("{run_id}", run_id))


def apart(schema: dict[str, Any]) -> set[str]:
    """Return the fields of which some exclude others: they are in the examples, and not sent beside them."""
    choices = [schema, *schema.get("allOf", ()), {"anyOf": [schema["not"]] if "not" in schema else []}]
    return {n for c in choices for one in c.get("oneOf", c.get("anyOf", ())) for n in one["required"]}


def test_a_body_is_refused_with_words_where_the_document_does_not_allow_it() -> None:
    """Each field with each value it may have is read; a wrong type, an unknown key and a missing one are named."""
    doc = document()
    models = {one.model for module in MODULES for route in module.router.routes for one in taken_by(route)}
    for model in models:
        schema = doc["components"]["schemas"][model.__name__]
        for example in schema["examples"]:
            assert not wrong(example, schema, doc), (model, example)
            body_as(model, example)
        example, known = schema["examples"][0], schema["properties"]
        for name, field in known.items():
            for value in sample(field, doc) if name not in apart(schema) else ():
                body_as(model, {**example, name: value})
            for value in misfits(field, doc):
                with pytest.raises(DefinitionError, match=name) as caught:
                    body_as(model, {**example, name: value})
                assert caught.value.hint
        near = f"{next(iter(known))}x"
        with pytest.raises(DefinitionError, match=f"'{near}' is not known") as caught:
            body_as(model, {**example, near: 1})
        assert near[:-1] in caught.value.hint
        for name in schema.get("required", ()):
            with pytest.raises(DefinitionError, match=f"'{name}' is missing"):
                body_as(model, {k: v for k, v in example.items() if k != name})


async def test_the_server_takes_and_answers_what_the_document_says(start: Start) -> None:
    """Every example, and it with a value for every other field, is taken; every answer has the shape that was promised."""
    async with start(config=CONFIG, awaits_config=True) as (_, http):
        made = (await http.post("/api/keys", json={"name": "first"})).json()
        http.headers["Authorization"] = f"Bearer {made['token']}"
        doc = (await http.get("/openapi.json")).json()
        run = (await http.post("/api/deployments/etl/run", json={"delay_s": 3600})).json()["id"]

        async def sent(method: str, path: str, said: dict[str, Any], body: Any) -> int:
            answer = await http.request(method, path_of(path, run), json=body)
            where = (method, path, body, answer.status_code, answer.text)
            assert str(answer.status_code) in said["responses"], where
            content = said["responses"][str(answer.status_code)].get("content")
            if content:
                media = content[answer.headers["content-type"].partition(";")[0]]
                assert wrong(answer.json(), media["schema"], doc) == "", where
            assert method == "GET" or answer.status_code not in (400, 401, 415, 422), where
            return answer.status_code

        done = 0
        for method, path, said in operations(doc):
            if "requestBody" not in said or path == "/hooks/{name}":
                continue
            written = said["requestBody"]["content"]["application/json"]["schema"]
            schema = resolved(written["anyOf"][0] if "anyOf" in written else written, doc)
            for example in schema["examples"]:
                done += await sent(method, path, said, example) < 300
            if path != "/api/automations/{name}":  # which words of a rule go together is not said there
                example = schema["examples"][0]
                others = {
                    name: next(sample(field, doc))
                    for name, field in schema["properties"].items()
                    if name not in apart(schema) and name not in example
                }
                done += await sent(method, path, said, {**example, **others}) < 300
        assert done > 25
        for method, path, said in operations(doc):
            is_one = path.startswith(("/api/", "/health/")) and not path.endswith(("/stream", "/wait"))
            if method == "GET" and is_one:
                await sent(method, path, said, None)
        for method, path, body, says in (
            ("POST", "deployments/etl/run", {"delay_s": 1, "scheduled_at": "2026-01-31"}, "both say when"),
            ("POST", "deployments/etl/run", {"scheduled_at": "soon"}, "such as 2026-01-31T09:00:00Z"),
            ("PUT", "limits/one", {"rate": "often"}, "is wrong: rate: 'often' is not a rate"),
        ):
            answer = await http.request(method, f"/api/{path}", json=body)
            assert (answer.status_code, says in answer.text) == (422, True), answer.text


def fits(schema: Any, value: dict[str, Any]) -> bool:
    """Return whether an object fits the part of JSON Schema that says which keys go together."""
    return (
        all(key in value for key in schema.get("required", ()))
        and all(value[k] >= s["minimum"] for k, s in schema.get("properties", {}).items() if k in value and "minimum" in s)
        and all(all(n in value for n in needs) for k, needs in schema.get("dependentRequired", {}).items() if k in value)
        and all(fits(one, value) for one in schema.get("allOf", ()))
        and ("anyOf" not in schema or any(fits(one, value) for one in schema["anyOf"]))
        and ("oneOf" not in schema or sum(fits(one, value) for one in schema["oneOf"]) == 1)
        and ("not" not in schema or not fits(schema["not"], value))
        and ("if" not in schema or not fits(schema["if"], value) or fits(schema["then"], value))
        and (schema.get("additionalProperties", True) or set(value) <= set(schema["properties"]))
    )  # fmt: skip


WORDS: dict[str, Any] = {
    "on": "a.b", "pattern": {"detail-type": ["a.b"]}, "count": 3, "within": "10m", "after": "a.c", "expect": "a.d",
    "sequence": [{"on": "a.e"}, {"on": "a.f"}], "any_of": ["a.g", "a.h"], "all_of": ["a.i", "a.j"],
    "debounce": {"quiet": "1s"}, "metric": {"measure": "count", "on": "a.k", "over": "1m"}, "is": "> 3", "for": "1m",
    "resolve": {"after": "5m"}, "on_resolve": [{"emit": "c.d"}],
}  # fmt: skip


def test_the_schema_of_a_rule_says_which_keys_go_together() -> None:
    """Of every choice of up to four keys the schema takes those that the rule language takes, and each key is told."""
    schema = document()["components"]["schemas"]["Rule"]
    assert all(key.get("description") for key in schema["properties"].values())
    taken = 0
    for n in range(5):
        for words in combinations(WORDS, n):
            rule = {word: WORDS[word] for word in words}
            try:
                Automation.model_validate({"name": "x", **rule})
            except ValidationError:
                assert not fits(schema, rule), rule
            else:
                assert fits(schema, rule), rule
                taken += 1
    assert taken > 40
    assert fits(schema, {"on": "a.b", "count": 1})
    assert not fits(schema, {"on": "a.b", "nope": 1})
