"""Templates are rendered in the loop everything else runs in: whatever they are asked, they are soon done."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import pytest
from hark.errors import TemplateError
from hark.template import check_template, render, render_value, template_names, template_paths, template_roots

MOST_S = 5.0
"""Of this thread's own work, some ten times what it takes, so that it holds on a busy machine; a hang would be minutes."""
MUCH = "x" * 60_000
DOUBLING = (
    "{% set n = namespace(x=(1,), y=(1,)) %}"
    "{% for i in range(60) %}{% set n.x = (n.x, n.x) %}{% set n.y = (n.y, n.y) %}{% endfor %}"
)
"""Two tuples of sixty levels, each twice in the next: small in memory, and never written out."""

TURNS = "{% for a in rows %}{% for b in rows %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in rows %}{% for b in rows %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}",
        "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x | length }}",
        "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x | length }}",
        "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x | length }}",
        "{{ much | replace('x', much) | length }}",
        "{{ much.replace('x', much) | length }}",
        "{{ rows | join(much) | length }}",
        "{{ much.join(rows) | length }}",
        "{{ 'a'.ljust(1000000000) | length }}",
        "{{ '{:>1000000000}'.format(1) | length }}",
        "{{ 'a\t'.expandtabs(1000000000) | length }}",
        "{{ much.translate({120: much}) | length }}",
        "{{ much | indent(1000000000) | length }}",
        "{{ rows | batch(1000000000, 0) | list | length }}",
        "{{ rows | slice(1000000000) | list | length }}",
        # What asks for less than nothing must not earn anything.
        "{{ rows | batch(-1000000000) | list | length }}" + TURNS,
        "{{ 'a' | indent(-1000000000) }}" + TURNS,
        "{{ 'a'.ljust(-1000000000) }}" + TURNS,
        *(
            DOUBLING + use
            for use in (
                "{{ n.x }}",
                "{{ n.x | string | length }}",
                "{{ n.x | tojson | length }}",
                "{{ [n.x] | join | length }}",
                "{{ n.x == n.y }}",
                "{{ n.x < n.y }}",
                "{{ n.x in [n.y] }}",
                "{{ [n.x, n.y] | sort | length }}",
                "{{ n }}",
                "{{ [n.x, n.y] | unique | list | length }}",
                "{{ {n.x: 1} | length }}",
                "{{ {}[n.x] }}",
                "{{ n.x ~ '' }}",
                "{{ [n.y].count(n.x) }}",
                "{{ [n.x] | select('in', [n.y]) | list | length }}",
                "{{ dict([(n.x, 1)]) | length }}",
                "{% set o = namespace([(n.x, 1)]) %}",
                "{{ n.x | safe | length }}",
            )
        ),
        "{% for a in rows %}{{ rows | sort | length }}{% endfor %}",
        "{% for a in rows %}{{ 'no' in rows }}{% endfor %}",
        "{% for a in rows %}{{ much | title | length }}{{ much.count('y') }}{% endfor %}",
        "{{ ([much] * 100000) | map('upper') | list | length }}",
        "{{ ([[1]] * 100000) | sum(start=[]) | length }}",
        "{% set x %}{% for a in rows %}{{ much }}{% endfor %}{% endset %}{{ x | length }}",
        "{% set x %}{% for a in rows %}" + "-" * 50_000 + "{% endfor %}{% endset %}{{ x | length }}",
        "{% filter length %}{% for a in rows %}{{ much }}{% endfor %}{% endfilter %}",
        "{% for a in rows recursive %}{% if loop.depth < 3 %}{{ loop(rows) }}{% endif %}{% endfor %}",
        *(
            "{% set r, keys = range(99999), dict.fromkeys(range(99999)).keys() %}"
            "{% for a in rows %}{% for b in rows %}{% set c = " + use + " %}{% endfor %}{% endfor %}"
            for use in (
                "rows[:]",
                "much[1:]",
                "[0] * 100000",
                "dict({'a': rows})",
                "namespace({'much': much})",
                "r.count(0.5)",
                "keys - keys",
                "keys.isdisjoint([])",
                "r | select('gt', 99999) | list",
                "0 | default(*rows)",
                "rows | safe",
            )
        ),
        "{{ ('a' * 60000).strip(('b' * 60000) ~ 'a') | length }}{{ ('a' * 60000) | trim(('b' * 60000) ~ 'a') | length }}",
        "{{ ('a' * 60000).rfind('ab' ~ 'a' * 30000) }}",
        "{{ 10 | round(-100000000) }}",
        "{% set a = ('f' * 60000) | int(0, 16) %}{% for i in rows %}{% set b = a // (a - 1) %}{% endfor %}",
        "{% set n = namespace(x=2) %}{% for i in range(99999) %}{% set n.x = n.x + n.x %}{% endfor %}",
    ],
    ids=lambda source: source[-60:],
)
def test_nothing_makes_a_template_take_long(source: str) -> None:
    """It is refused, before the time or the memory is spent."""
    began = time.thread_time()
    with pytest.raises(TemplateError):
        render_value(source, {"rows": ["1"] * 10_000, "much": MUCH})
    assert time.thread_time() - began < MOST_S


@pytest.mark.parametrize(
    ("source", "made"),
    [
        ("{% for a in rows %}{{ loop.index }}={{ a }};{% endfor %}", "1=b;2=a;"),
        ("{% for a in rows if a > 'a' %}{{ a }}{% else %}none{% endfor %}", "b"),
        ("{{ 'n=' ~ n ~ '.' }}", "n=7."),
        ("{{ rows + ['c'] }}", ["b", "a", "c"]),
        ("{{ path.replace('a/', '') }}", "b/c"),
        ("{{ path | replace('/', '.', 1) }}", "a.b/c"),
        ("{{ '-'.join(rows) }}{{ rows | join('+') }}", "b-ab+a"),
        ("{{ items | join(', ', attribute='id') }}", "1, 2"),
        ("{{ path.split('/')[1].upper() }}", "B"),
        ("{{ (n | string).zfill(3) }}", "007"),
        ("{{ rows | batch(1) | list }}", [["b"], ["a"]]),
        ("{{ rows | slice(2) | list }}", [["b"], ["a"]]),
        ("{{ 'a\nb' | indent(2) }}", "a\n  b"),
        ("{{ items | map(attribute='id') | sort(reverse=true) | first }}", 2),
        ("{{ items | selectattr('id', 'in', [2, 3]) | map(attribute='id') | list }}", [2]),
        ("{{ items | groupby('id') | map('first') | list }}", [1, 2]),
        ("{{ items | sum(attribute='id') }}/{{ 10.456 | round(1) }}", "3/10.5"),
        ("{% for a, b in {'k': n}.items() %}{{ a }}={{ b }}{% endfor %}", "k=7"),
        ("{% set f %}{{ n }}!{% endset %}{{ f }}{{ missing | default('none') }}", "7!none"),
        ("{{ rows[n - 7] == 'b' and 7 == n < 8 }}", True),
        ("{{ rows[:1] + path[2:] | list }}", ["b", "b", "/", "c"]),
        ("{{ path.strip('ac') | trim('/') }}{{ path.rsplit('/', 1)[1] }}", "bc"),
        (
            "{{ ({'k': n, 'l': n}.keys() - ['l']) | list }}{{ none | default([], true) | select | list }}",
            "['k'][]",
        ),
        ("{{ dict([('k', n)], l=rows) }}", {"k": 7, "l": ["b", "a"]}),
        (
            "{% for a in [[1], 2] recursive %}{% if a is number %}{{ a }}{% else %}({{ loop(a) }}){% endif %}{% endfor %}",
            "(1)2",
        ),
    ],
)
def test_what_people_write_works(source: str, made: Any) -> None:
    """The bounds are out of the way of every honest template."""
    context = {"rows": ["b", "a"], "n": 7, "path": "a/b/c", "items": [{"id": 1}, {"id": 2}]}
    assert render_value(source, context) == made


@pytest.mark.parametrize(
    "path",
    [
        "event", "event.data", "event.data.n", "-event.data.n", "event.data.none", "event.data._n", "event.data.items",
        "event.data.__class__", "event.data.gone", "event.data.gone.n", "event.data.rows.n", "event['data'].n", "gone", "gone.n",
        "event.data.rows", "event.data.text", "event.data.text.n", "range", "event.data.doubled", "own.n", "event.keys.n",
    ],
)  # fmt: skip
def test_a_chain_of_keys_gives_what_jinja_gives(path: str) -> None:
    """Which is looked up without it, where all are plain objects."""
    doubled: list[Any] = ["x" * 100]
    for _ in range(40):
        doubled = [doubled, doubled]
    data = {"n": 7, "none": None, "_n": 8, "items": 9, "rows": [1, {"n": 2}], "text": "t", "doubled": doubled}
    context = {"event": {"data": data, "keys": {"n": 1}}, "own": type("Own", (dict,), {})(n=3)}
    outcomes = []
    for source in (f"{{{{ {path} }}}}", f"{{{{ {path} if true }}}}"):
        try:
            outcomes.append(render_value(source, context))
        except TemplateError as exc:
            outcomes.append(str(exc).replace(" if true", ""))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    "source", ["{{ x" + ".y" * 5000 + " }}", "{{ " + "not " * 5000 + "x }}", "{{ 9" + "9" * 60_000 + " }}"]
)
def test_what_cannot_be_read_is_a_template_error_whatever_is_asked_of_it(source: str) -> None:
    """Also where only the names in it are wanted: chains too long to walk, and numbers too long to read."""
    with pytest.raises(TemplateError):
        check_template(source)
    for ask in (template_names, template_roots, template_paths):
        with suppress(TemplateError):
            ask(source)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ body.n }}", "the mapping has no 'n'"),
        ("{{ body.a.b }}", "the number has no 'b'"),
        ("{{ body.l[3] }}", "the list has no element 3"),
        ("{{ body.z.y }}", "null has no 'y'"),
        ("{{ nope }}", "'nope' is undefined"),
    ],
)
def test_what_is_not_there_is_said_without_types_of_python(source: str, says: str) -> None:
    """And what to write where it may be missing."""
    with pytest.raises(TemplateError, match=says) as caught:
        render(source, {"body": {"a": 1, "l": [1], "z": None}})
    assert "default" in caught.value.hint
