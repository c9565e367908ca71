"""Resume keys."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

from hark.engine.calls.call_key import CallCounter, inputs_hash
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
inputs = st.dictionaries(st.text(min_size=1), json, max_size=4)


@given(inputs, st.randoms(use_true_random=False))
def test_the_order_of_names_does_not_matter(given_inputs: dict[str, Any], rng: random.Random) -> None:
    """Inputs are hashed by name."""
    items = list(given_inputs.items())
    rng.shuffle(items)
    assert inputs_hash(dict(items)) == inputs_hash(given_inputs)


@given(st.lists(st.sampled_from([1, 2, 3]), max_size=30), st.randoms(use_true_random=False))
def test_keys_do_not_depend_on_the_order_of_calls(calls: list[int], rng: random.Random) -> None:
    """However concurrent calls are interleaved, the same set of keys is given out."""
    shuffled = list(calls)
    rng.shuffle(shuffled)
    one, other = CallCounter(), CallCounter()
    assert {one.key("t", {"x": x})[0] for x in calls} == {other.key("t", {"x": x})[0] for x in shuffled}


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 2)), max_size=40))
def test_no_two_calls_share_a_key(calls: list[tuple[str, int]]) -> None:
    """Every call made in one place has a key of its own."""
    counter = CallCounter()
    keys = [counter.key(name, {"x": x})[0] for name, x in calls]
    assert len(set(keys)) == len(keys)


@given(inputs, st.binary(max_size=16))
def test_a_key_holds_the_hash_of_its_inputs(given_inputs: dict[str, Any], salt: bytes) -> None:
    """However often it is asked: recorded keys count in later releases, too."""
    counter = CallCounter()
    for index in range(2):
        assert counter.key("t", given_inputs, salt=salt) == (
            f"t-{index}-{inputs_hash(given_inputs, scope=salt)}",
            index,
        )


def test_calls_of_different_task_runs_differ() -> None:
    """The same call made by two task runs is two calls."""
    assert CallCounter("one").key("t", {}) != CallCounter("other").key("t", {})
    assert CallCounter("one").key("t", {}) == CallCounter("one").key("t", {})


def test_a_salt_tells_tasks_of_one_name_apart() -> None:
    """Two functions may have the same name."""
    counter = CallCounter()
    assert counter.key("t", {}, salt=b"a")[0] != counter.key("t", {}, salt=b"b")[0]


@dataclasses.dataclass
class Point:
    x: int
    label: str


class Model(BaseModel):
    n: int


class Thing:
    def __init__(self, names: set[str]) -> None:
        self.names = names


def odd_inputs() -> dict[str, Any]:
    """Values of many kinds, the same in every process."""
    return {
        "set": {"a", "b", "c", "d", "e"}, "tuple": (1, 2), "bytes": b"\x00\xff", "point": Point(1, "p"),
        "model": Model(n=3), "thing": Thing({"x", "y", "z", "w"}), "decimal": Decimal("1.10"), "path": Path("/a"),
        "big": 2**100, "keys": {1: "a", (2, 3): "b"}, "fn": len, "cls": Point, "frozen": frozenset({"q", "r"}),
    }  # fmt: skip


def test_the_hash_is_the_same_in_every_process() -> None:
    """A resumed run lives in another process, where sets have another order."""
    code = (
        "import importlib.util as u,sys;s=u.spec_from_file_location('keys_module',sys.argv[1]);"
        "m=u.module_from_spec(s);sys.modules['keys_module']=m;s.loader.exec_module(m);"
        "from hark.engine.calls.call_key import inputs_hash;"
        "[print(k,inputs_hash({k:v})) for k,v in m.odd_inputs().items()]"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", code, __file__], env={"PYTHONHASHSEED": seed, "PATH": ""}, check=True,
            capture_output=True, text=True,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert found[0].splitlines() == found[1].splitlines()


def test_different_values_differ() -> None:
    """Each odd value, and each kind, has its own hash."""
    hashes = {name: inputs_hash({"v": value}) for name, value in odd_inputs().items()}
    assert len(set(hashes.values())) == len(hashes)
    assert inputs_hash({"v": Thing({"a"})}) != inputs_hash({"v": Thing({"b"})})
    assert inputs_hash({"v": Model(n=1)}) != inputs_hash({"v": Model(n=2)})


def test_a_value_that_cannot_be_encoded_counts_by_its_type() -> None:
    """A lock, or a structure that contains itself, does not stop a run and does not hide the other inputs."""
    loop: list[Any] = []
    loop.append(loop)
    assert inputs_hash({"lock": threading.Lock(), "n": 1}) == inputs_hash({"lock": threading.Lock(), "n": 1})
    assert inputs_hash({"lock": threading.Lock(), "n": 1}) != inputs_hash({"lock": threading.Lock(), "n": 2})
    assert inputs_hash({"loop": loop}) == inputs_hash({"loop": loop})


def test_counting_is_safe_in_threads() -> None:
    """Threads that make equal calls at once still get one key each."""
    counter = CallCounter()
    keys: list[str] = []
    together(lambda: keys.extend(counter.key("t", {"x": 1})[0] for _ in range(200)), times=4)
    assert len(set(keys)) == 800


def together(fn: Callable[[], object], *, times: int) -> None:
    threads = [threading.Thread(target=fn) for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
