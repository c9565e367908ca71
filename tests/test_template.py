"""Templates are rendered in the loop everything else runs in: whatever they are asked, they are soon done."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hark.errors import TemplateError
from hark.template import render_value

MUCH = "x" * 60_000


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
    ],
)
def test_nothing_makes_a_template_take_long(source: str) -> None:
    """It is refused, before the time or the memory is spent."""
    began = time.thread_time()
    with pytest.raises(TemplateError):
        render_value(source, {"rows": ["1"] * 10_000, "much": MUCH})
    assert time.thread_time() - began < 1


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
    ],
)
def test_what_people_write_works(source: str, made: Any) -> None:
    """The bounds are out of the way of every honest template."""
    context = {"rows": ["b", "a"], "n": 7, "path": "a/b/c", "items": [{"id": 1}, {"id": 2}]}
    assert render_value(source, context) == made
