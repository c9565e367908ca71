"""The file of a backup: what was written is read back, and nothing else passes for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from hark.bus.archive import FORMAT, read_archive, writing
from hark.errors import AlreadyHeld, BackupUnreadable, RefusedError
from hypothesis import given, settings
from hypothesis import strategies as st

PIECES = {"HARK": [b"abc", b"", b"d" * 30], "KV": []}


def write(path: Path, pieces: dict[str, list[bytes]], *, overwrite: bool = False) -> Path:
    with writing(path, overwrite=overwrite) as archive:
        archive.header({"hark": "1.0"})
        for name, chunks in pieces.items():
            archive.begin(name, {"kind": "stream"})
            for chunk in chunks:
                archive.chunk(chunk)
            archive.end()
    return path


@settings(max_examples=10)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8), st.lists(st.binary(max_size=200), max_size=4), max_size=4
    )
)
def test_pieces_are_read_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, pieces: dict[str, list[bytes]]
) -> None:
    """In their order, with their bytes, whatever those are; the file is its owner's alone."""
    path = write(tmp_path_factory.mktemp("a") / "b.hark", pieces)
    archive = read_archive(path)
    assert {p.name: list(archive.chunks(p)) for p in archive.pieces} == pieces
    assert [p.name for p in archive.pieces] == list(pieces)
    assert path.stat().st_mode & 0o777 == 0o600
    assert archive.size_bytes == path.stat().st_size


def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    """Also by its last byte."""
    raw = write(tmp_path / "whole", PIECES).read_bytes()
    cut = tmp_path / "cut"
    for length in range(len(raw)):
        cut.write_bytes(raw[:length])
        with pytest.raises(BackupUnreadable):
            read_archive(cut)
    cut.write_bytes(raw + b"x")
    with pytest.raises(BackupUnreadable, match="behind its end"):
        read_archive(cut)


def test_a_file_with_any_byte_changed_is_refused(tmp_path: Path) -> None:
    """Descriptions and lengths are as well guarded as contents."""
    raw = write(tmp_path / "whole", PIECES).read_bytes()
    bad = tmp_path / "bad"
    for at in range(len(raw)):
        bad.write_bytes(raw[:at] + bytes([raw[at] ^ 0x01]) + raw[at + 1 :])
        with pytest.raises(BackupUnreadable):
            read_archive(bad)


def test_other_files_and_newer_formats_are_told_apart(tmp_path: Path) -> None:
    """Each says what it is and what to do."""
    other = tmp_path / "other"
    other.write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(BackupUnreadable, match="no backup of Hark"):
        read_archive(other)
    with pytest.raises(BackupUnreadable, match="No such file"):
        read_archive(tmp_path / "missing")
    newer = tmp_path / "newer"
    with writing(newer) as archive:
        archive._frame(b"H", orjson.dumps({"format": FORMAT + 1, "hark": "9.0"}))
    with pytest.raises(BackupUnreadable, match="a newer Hark") as raised:
        read_archive(newer)
    assert "9.0" in raised.value.hint


def test_a_file_that_is_there_is_replaced_only_on_request_and_as_a_whole(tmp_path: Path) -> None:
    """A backup that fails halfway leaves the old one, and nothing beside it."""
    path = write(tmp_path / "b", {"old": [b"1"]})
    with pytest.raises(RefusedError, match="there already"):
        write(path, PIECES)

    def fail_halfway() -> None:
        with writing(path, overwrite=True) as archive:
            archive.header({})
            raise RuntimeError("the broker is gone")

    with pytest.raises(RuntimeError, match="broker"):
        fail_halfway()
    assert [p.name for p in read_archive(path).pieces] == ["old"]
    assert list(tmp_path.iterdir()) == [path]
    write(path, PIECES, overwrite=True)
    assert [p.name for p in read_archive(path).pieces] == list(PIECES)


def test_two_backups_do_not_write_one_file(tmp_path: Path) -> None:
    """The second is refused, and the first goes on."""
    path = tmp_path / "b"
    with writing(path) as archive:
        archive.header({})
        with pytest.raises(AlreadyHeld, match="another backup"):
            write(path, PIECES)
    assert read_archive(path).pieces == ()


def test_a_backup_that_is_killed_leaves_nothing_that_passes_for_one(tmp_path: Path) -> None:
    """What it leaves has another name, and the next one writes over it."""
    path = tmp_path / "b"
    code = (
        "import os, sys, pathlib\nfrom hark.bus.archive import writing\n"
        "with writing(pathlib.Path(sys.argv[1])) as a:\n"
        "    a.header({}); a.begin('HARK', {}); a.chunk(b'x' * 3_000_000)\n    os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    assert [p.name for p in tmp_path.iterdir()] == ["b.partial"]
    write(path, PIECES)
    assert [p.name for p in read_archive(path).pieces] == list(PIECES)
    assert list(tmp_path.iterdir()) == [path]
