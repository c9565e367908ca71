"""Small tools under Prefect's names that flows import: async code from sync, names and texts, placeholders, paths of imports."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hark import flow, task
from hark.engine.annotations import NotSet
from hark.engine.exceptions import ScriptError
from hark.engine.utilities.asyncness import (
    run_async_from_worker_thread,
    run_async_in_new_loop,
    run_sync_in_worker_thread,
    sync,
    sync_compatible,
)
from hark.engine.utilities.gathering import (
    GatherIncomplete,
    asyncnullcontext,
    create_gather_task_group,
    gather,
)
from hark.engine.utilities.import_path import (
    from_qualified_name,
    import_object,
    load_script_as_module,
    to_qualified_name,
)
from hark.engine.utilities.paths import (
    filename,
    is_local_path,
    relative_path_to_current_platform,
    tmpchdir,
    to_display_path,
)
from hark.engine.utilities.placeholders import apply_values, find_placeholders
from hark.engine.utilities.random_interval import (
    bounded_poisson_interval,
    clamped_poisson_interval,
    exponential_cdf,
    lower_clamp_multiple,
    poisson_interval,
)
from hark.engine.utilities.wording import fuzzy_match_string, generate_slug, obfuscate, truncated_to
from hypothesis import given
from hypothesis import strategies as st


@sync_compatible
async def plus_one(n: int) -> int:
    await asyncio.sleep(0)
    return n + 1


async def one() -> int:
    await asyncio.sleep(0)
    return 1


def test_an_async_function_is_called_from_where_it_is() -> None:
    """Waited for in sync code and in sync runs, whatever is around them; awaited in async ones; or as the call says."""

    @task
    def in_task() -> int:
        found: int = plus_one(1)
        return found

    @flow
    def sync_flow() -> tuple[int, int, int]:
        return plus_one(0), in_task(), in_task.submit().result()

    @flow
    async def async_flow() -> list[Any]:
        loose: Any = plus_one
        return [await plus_one(0), sync_flow(), in_task(), loose(6, _sync=True), await loose.aio(7)]

    assert (plus_one(0), sync_flow()) == (1, (1, 2, 2))
    assert asyncio.run(async_flow()) == [1, (1, 2, 2), 2, 7, 8]
    with pytest.raises(TypeError, match="must be async"):
        sync_compatible(lambda: 1)  # type: ignore[arg-type,return-value]

    async def numbers() -> Any:
        yield 1

    with pytest.raises(ValueError, match="generators"):
        sync_compatible(numbers)


def test_loops_and_threads_call_each_other() -> None:
    """From a thread the loop that started it; from sync code a loop of its own."""

    async def through_a_thread() -> int:
        return await run_sync_in_worker_thread(run_async_from_worker_thread, one)

    assert (run_async_in_new_loop(through_a_thread), sync(one)) == (1, 1)


async def test_calls_are_gathered_in_their_order() -> None:
    """What they return is there once the block has been left."""

    async def two() -> int:
        return 2

    async def bad() -> int:
        raise ValueError("no")

    assert await gather(one, two) == [1, 2]
    with pytest.raises(ExceptionGroup):
        await gather(one, bad)
    async with create_gather_task_group() as group, asyncnullcontext(3) as three:
        key = group.start_soon(one)
        with pytest.raises(GatherIncomplete):
            group.get_result(key)
    assert (group.get_result(key), three) == (1, 3)


def test_words_are_made_up_cut_and_hidden() -> None:
    """At most four characters of a long secret are shown."""
    assert [len(generate_slug(n).split("-")) for n in (1, 2, 4)] == [1, 2, 4]
    assert [obfuscate(s, show_tail=True) for s in (None, "abcdefgh", "abcdefghijk", "abcdefghijklmnopqrs")] == [
        "********", "********", "*******k", "****pqrs",
    ]  # fmt: skip
    assert obfuscate("abcdefghijklmnopqrs") == "********"
    assert truncated_to(10, "x" * 100) == "xxxxx...90 additional characters...xxxxx"
    assert [truncated_to(5, text) for text in (None, "hello", "hello world")] == ["", "hello", "hello world"]
    assert [fuzzy_match_string(word, ["happy", "sad"]) for word in ("hapy", "zzz")] == ["happy", None]


@given(mean=st.floats(0.1, 1000), factor=st.floats(0.01, 5), low=st.floats(0.1, 10), width=st.floats(0, 10))
def test_random_intervals_keep_to_their_bounds(mean: float, factor: float, low: float, width: float) -> None:
    """And leave as much of the distribution below the median as above it."""
    slack = 1 + 1e-6
    found = clamped_poisson_interval(mean, factor)
    assert mean * lower_clamp_multiple(1 + factor) <= found * slack
    assert found <= mean * (1 + factor) * slack
    assert low <= bounded_poisson_interval(low, low + width) * slack
    assert bounded_poisson_interval(low, low + width) <= (low + width) * slack
    assert poisson_interval(mean) >= 0
    k = 1 + factor
    assert 2**-k + 2 ** -lower_clamp_multiple(k) == pytest.approx(1)
    assert exponential_cdf(mean, mean) == pytest.approx(0.632, abs=1e-3)


def test_intervals_of_nothing() -> None:
    """Are nothing; a factor of nothing is refused."""
    assert (clamped_poisson_interval(0), lower_clamp_multiple(50)) == (0.0, 0.0)
    with pytest.raises(ValueError, match="above 0"):
        clamped_poisson_interval(1, 0)


def test_placeholders_are_found_and_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is a whole text becomes the value; one without a value goes with its key, or stays."""
    monkeypatch.setenv("HOME_X", "hx")
    template = {
        "a": "{{ x }}", "b": ["{{x}} and {{ y.z }}", "{{missing}}", 3, None], "c": "{{ missing }}",
        "d": {"e": "pre {{missing}}{{ $HOME_X }}"}, "f": "{{ prefect.blocks.secret.s }}", "g": "{{ l[1].q }}", "h": "{ x }",
    }  # fmt: skip
    values = {"x": 1, "y": {"z": 2}, "l": [0, {"q": 9}]}
    filled = {
        "a": 1, "b": ["1 and 2", 3, None], "d": {"e": "pre hx"}, "f": "{{ prefect.blocks.secret.s }}", "g": 9, "h": "{ x }",
    }  # fmt: skip
    assert apply_values(template, values) == filled
    kept = apply_values(template, values, remove_notset=False, skip_prefixes=["y"])
    assert (kept["c"], kept["d"]["e"], kept["b"][0]) == (
        "{{ missing }}",
        "pre {{missing}}hx",
        "1 and {{ y.z }}",
    )
    assert apply_values("{{ missing }}", {}) is NotSet
    assert {(one.name, one.type.value) for one in find_placeholders(template)} == {
        ("x", "standard"), ("y.z", "standard"), ("missing", "standard"), ("$HOME_X", "env_var"),
        ("prefect.blocks.secret.s", "block_document"), ("l[1].q", "standard"),
    }  # fmt: skip
    for refused in (lambda: apply_values(object(), {}), lambda: find_placeholders([object()])):
        with pytest.raises(ValueError, match="object"):
            refused()


def test_objects_are_imported_by_their_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of modules and of files, which find what stands beside them."""
    assert [import_object(path).__name__ for path in ("json.dumps", "json:dumps", "json:JSONDecoder.decode")] == [
        "dumps", "dumps", "decode",
    ]  # fmt: skip
    assert from_qualified_name(to_qualified_name(Path)) is Path
    assert from_qualified_name("os.path") is os.path
    (tmp_path / "beside_it.py").write_text("Y = 4")
    (tmp_path / "a_script.py").write_text("from beside_it import Y")
    (tmp_path / "json.py").write_text("Z = 5")
    (tmp_path / "bad_script.py").write_text("1 / 0")
    before = set(sys.modules)
    try:
        assert import_object(f"{tmp_path}/a_script.py:Y") == 4
        assert load_script_as_module(f"{tmp_path}/json.py").Z == 5
        with pytest.raises(ScriptError) as said:
            load_script_as_module(f"{tmp_path}/bad_script.py")
        assert isinstance(said.value.user_exc, ZeroDivisionError)
    finally:
        for name in set(sys.modules) - before:
            del sys.modules[name]
    assert str(tmp_path) not in sys.path
    for path, error in (("json", ValueError), ("a.txt:b", ImportError), ("json.nope", AttributeError)):
        with pytest.raises(error):
            import_object(path)
    with pytest.raises(ValueError, match=re.escape(".py")):
        load_script_as_module("a.txt")


def test_paths_are_shown_and_worked_in(tmp_path: Path) -> None:
    """A block works in a folder, of a file in the one it stands in."""
    (tmp_path / "f.txt").write_text("")
    before = os.getcwd()
    for path in (tmp_path, tmp_path / "f.txt", tmp_path / "none"):
        with tmpchdir(path) as here:
            assert os.getcwd() == here == str(tmp_path.resolve())
    assert os.getcwd() == before
    assert [filename(path) for path in ("a/b.py", "s3://x/z.txt", "c\\d.py")] == ["b.py", "z.txt", "d.py"]
    assert [is_local_path(path) for path in ("a", Path("b"), "file:///x", "s3://b/x")] == [
        True,
        True,
        True,
        False,
    ]
    assert to_display_path(tmp_path / "f.txt", tmp_path) == "f.txt"
    assert relative_path_to_current_platform("a\\b") == Path("a/b")
