"""YAML 1.2 as plain values that know where they stood, and nothing a file says makes it large."""

from __future__ import annotations

from pathlib import Path

import pytest
from hark.server.yaml_source import MAX_BYTES, config_files, parse_yaml, read_source


def value_of(text: str) -> object:
    source = parse_yaml(text, "f.yaml")
    assert source.faults == ()
    assert source.root is not None
    return source.root.value


def faults_of(text: str) -> list[str]:
    return [str(f) for f in parse_yaml(text, "f.yaml").faults]


def test_words_of_yaml_1_1_stay_words() -> None:
    """`on`, `yes`, `off` and dates are text, as YAML 1.2 has it; numbers, true and null are themselves."""
    text = (
        "on: yes\noff: no\nday: 2026-01-01\nclock: 12:30\nn: 0o17\nx: 0x1F\nf: 1e3\nb: true\nz: ~\nq: '5'\n"
    )
    assert value_of(text) == {
        "on": "yes", "off": "no", "day": "2026-01-01", "clock": "12:30", "n": 15, "x": 31, "f": 1000.0, "b": True,
        "z": None, "q": "5",
    }  # fmt: skip


def test_anchors_and_merges_are_resolved() -> None:
    """What is written beside `<<` wins over what is merged in."""
    text = "x-base: &b {a: 1, c: 2}\none:\n  <<: *b\n  a: 9\ntwo: *b\n"
    assert value_of(text) == {"x-base": {"a": 1, "c": 2}, "one": {"a": 9, "c": 2}, "two": {"a": 1, "c": 2}}


def test_every_value_and_key_knows_its_place() -> None:
    """Lines and columns count from 1, in the file."""
    root = parse_yaml("a:\n  - x: 1\n    yy: [2, 3]\n", "f.yaml").root
    assert root is not None
    node = root.find(("a", 0))
    assert node is not None
    assert str(node.keys["yy"]) == "f.yaml:3:5"
    deep = root.find(("a", 0, "yy", 1))
    assert deep is not None
    assert str(deep.at) == "f.yaml:3:13"
    assert root.find(("a", 1)) is None


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "a: 1\nb:\n  c: 1\n  c: 2\n",
            "f.yaml:4:3: the key 'c' is already set on line 3; remove one of the two",
        ),
        (
            "a: [1\n",
            "f.yaml:2:1: not YAML: expected ',' or ']', but got '<stream end>' while parsing a flow sequence",
        ),
        ("a: b: c\n", "f.yaml:1:5: not YAML: mapping values are not allowed here; "),
        (
            "a: {x: b: c}\n",
            "f.yaml:1:9: not YAML: expected ',' or '}', but got ':' while parsing a flow mapping; quote a text that contains `: `",
        ),
        ("a:\n\tb: 1\n", "f.yaml:2:1: not YAML: found character '\\t' that cannot start any token"),
        ("a: 1\n---\nb: 2\n", "f.yaml:2:1: not YAML: but found another document"),
        ("a: *nope\n", "f.yaml:1:4: not YAML: found undefined alias 'nope'; define the anchor"),
        (
            "a: !!python/object:os.system x\n",
            "f.yaml:1:4: the tag tag:yaml.org,2002:python/object:os.system is not used",
        ),
        ("a: !secret x\n", "f.yaml:1:4: the tag !secret is not used here; write the plain value"),
        ("a: .inf\n", "f.yaml:1:4: .inf is no number that can be stored"),
        ("- a\n", "f.yaml:1:1: the file must be a mapping of sections"),
        ("? [a]\n: b\n", "f.yaml:1:3: a key must be a plain word"),
        ("a: &a [*a]\n", "f.yaml:1:4: an alias stands inside the very thing it names"),
        ("a:\n  <<: 3\n", "f.yaml:2:3: `<<` merges mappings, and this is none"),
    ],
)
def test_a_fault_says_where_and_what_to_do(text: str, fault: str) -> None:
    """File, line, column, the fault, a suggestion."""
    assert faults_of(text)[0].startswith(fault)


def test_a_billion_laughs_are_refused_before_they_are_expanded() -> None:
    """Aliases of aliases expand to at most a stated number of values; all of them would fill the memory."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    faults = faults_of("\n".join(lines))
    assert "more than 200000 values once its aliases are expanded" in faults[0]


@pytest.mark.parametrize("depth", [60, 5000])
def test_deep_nesting_is_refused(depth: int) -> None:
    """Whatever the depth, it is a fault and not a crash."""
    assert "nested deeper than 40 levels" in faults_of("a: " + "[" * depth + "]" * depth)[0]


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    """Its size is looked at before its content."""
    path = tmp_path / "big.yaml"
    path.write_bytes(b"# " + b"x" * MAX_BYTES)
    assert "split it into a folder" in str(read_source(path).faults[0])


def test_bytes_that_are_no_text_are_a_fault_with_its_place(tmp_path: Path) -> None:
    """The line and column of the first wrong byte are said."""
    path = tmp_path / "a.yaml"
    path.write_bytes(b"a: 1\nb: \xff\n")
    assert str(read_source(path, shown_as="a.yaml").faults[0]) == "a.yaml:2:4: is not UTF-8 text"


def test_a_folder_is_its_yaml_files_in_order(tmp_path: Path) -> None:
    """Hidden files and other suffixes are left out; folders are gone into."""
    for name in ("b.yaml", "a.yml", "sub/c.yaml", ".hidden.yaml", ".git/d.yaml", "e.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("variables: {}\n")
    assert [str(p.relative_to(tmp_path)) for p in config_files(tmp_path)] == ["a.yml", "b.yaml", "sub/c.yaml"]
    with pytest.raises(FileNotFoundError):
        config_files(tmp_path / "none")


@pytest.mark.parametrize(
    "number", ["18446744073709551616", "-9223372036854775809", "0xffffffffffffffffff", "9" * 5000]
)
def test_a_number_that_would_lose_digits_is_a_fault(number: str) -> None:
    """JSON as it is stored and read holds 64 bits; quoted, it is a text like any other."""
    source = parse_yaml(f"a:\n  b: {number}\n", "x.yaml")
    [fault] = source.faults
    assert (fault.at.line, fault.at.column) == (2, 6)
    assert "beyond 64 bits" in fault.message
    assert "quote it" in fault.suggestion
    assert not parse_yaml(f"a:\n  b: '{number}'\n", "x.yaml").faults


def test_the_largest_numbers_that_are_held_are_taken() -> None:
    """Up to the last bit."""
    source = parse_yaml("{a: 18446744073709551615, b: -9223372036854775808}", "x.yaml")
    assert source.root is not None
    assert source.root.value == {"a": 2**64 - 1, "b": -(2**63)}


@pytest.mark.parametrize("text", ['{a: "x\\ud800"}', '{"\\udfff": 1}', '[{a: ["\\ud83d"]}]'])
def test_half_a_character_is_a_fault(text: str) -> None:
    """Wherever a text may stand: nothing could store it."""
    source = parse_yaml(text, "x.yaml", is_config=False)
    assert ["half a character" in fault.message for fault in source.faults] == [True]
