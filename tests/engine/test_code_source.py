"""Flows from repositories: real ones, by the real ``git``."""

from __future__ import annotations

import base64
import fcntl
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anyio
import pytest
from hark import flow
from hark.bus import Bus
from hark.bus.session import use_session
from hark.config import load_settings
from hark.engine.code_source import GitRepository, GitSource, LocalStorage, fetch, fetched
from hark.engine.secret import Secret
from hark.errors import DefinitionError, MissingFlow, SourceFailed
from hark.server.serving import deploy

from .conftest import Stage

FLOW = """
from hark import flow

@flow
def answer() -> int:
    return {value}

@flow
async def answer_async() -> int:
    from beside import VALUE
    return VALUE
"""


class Repository:
    """A git repository with a file of flows in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        self.git("init", "--quiet", "--initial-branch=main")
        self.first = self.commit(1)

    @property
    def url(self) -> str:
        return self.root.as_uri()

    def git(self, *words: str) -> str:
        options = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "protocol.file.allow=always")
        return subprocess.run(
            ["git", *options, *words], cwd=self.root, check=True, capture_output=True, text=True
        ).stdout.strip()

    def commit(self, value: int) -> str:
        """Have the flows return another value; return the commit."""
        (self.root / "repo_flows.py").write_text(FLOW.format(value=value))
        (self.root / "beside.py").write_text(f"VALUE = {value}\n")
        self.git("add", "-A")
        self.git("commit", "--quiet", "-m", f"value {value}")
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home for what is fetched."""
    monkeypatch.setenv("HARK_HOME", str(tmp_path / "home"))
    load_settings.cache_clear()
    return tmp_path / "home"


def value_in(folder: Path) -> str:
    return (folder / "beside.py").read_text().strip()


def test_a_repository_is_fetched_and_each_commit_has_its_folder(repository: Repository, home: Path) -> None:
    """A newer commit is seen at the next fetch, and what was checked out before stays as it is."""
    source = GitSource(url=repository.url, pull_interval=0)
    old = fetch(source, home)
    assert value_in(old) == "VALUE = 1"
    assert fetch(source, home) == old
    repository.commit(2)
    new = fetch(source, home)
    assert (value_in(new), value_in(old)) == ("VALUE = 2", "VALUE = 1")
    assert fetch(GitSource(url=repository.url, commit_sha=repository.first), home) == old
    repository.git("checkout", "--quiet", "-b", "side")
    repository.commit(3)
    assert value_in(fetch(GitSource(url=repository.url, branch="side", pull_interval=0), home)) == "VALUE = 3"
    assert value_in(fetch(GitSource(url=repository.url, branch="main", pull_interval=0), home)) == "VALUE = 2"


def test_what_was_just_fetched_counts_as_new(repository: Repository, home: Path) -> None:
    """For the interval; a commit that is not here yet is fetched all the same."""
    source = GitSource(url=repository.url, pull_interval=3600)
    fetch(source, home)
    second = repository.commit(2)
    assert value_in(fetch(source, home)) == "VALUE = 1"
    assert value_in(fetch(GitSource(url=repository.url, commit_sha=second), home)) == "VALUE = 2"


def test_the_default_branch_is_the_one_the_repository_has_now(repository: Repository, home: Path) -> None:
    """Not the one it had when it was first fetched."""
    source = GitSource(url=repository.url, pull_interval=0)
    assert value_in(fetch(source, home)) == "VALUE = 1"
    repository.git("checkout", "--quiet", "-b", "trunk")
    repository.commit(2)
    assert value_in(fetch(source, home)) == "VALUE = 2"
    assert value_in(fetch(GitSource(url=repository.url, branch="main", pull_interval=0), home)) == "VALUE = 1"
    repository.git("branch", "-D", "main")
    assert value_in(fetch(source, home)) == "VALUE = 2"


HOLDER = """
import fcntl, sys, time
held = open(sys.argv[1], "w")
fcntl.flock(held, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(600)
"""


def test_a_process_that_is_stuck_does_not_hold_up_the_others_for_ever(
    repository: Repository, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They say so after a while; once it is killed, its lock is gone with it."""
    source = GitSource(url=repository.url, pull_interval=0)
    folder = fetch(source, home)
    lock = folder.parent / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        monkeypatch.setattr("hark.engine.code_source.TURN_S", 0.3)
        with pytest.raises(SourceFailed, match="another process of this machine") as caught:
            fetch(source, home)
        assert str(lock) in caught.value.hint
        monkeypatch.setattr("hark.engine.code_source.TURN_S", 60.0)
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(fetch, source, home)
            holder.kill()
            assert waiting.result(60) == folder
    finally:
        holder.kill()
        holder.communicate()


async def test_fetching_takes_no_thread_that_others_wait_for(
    home: Path, repository: Repository, bus: Bus
) -> None:
    """However many runs wait for one repository, the threads of everything else stay free."""
    source = GitSource(url=repository.url, pull_interval=0)
    folder = fetch(source, home)
    with (folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        async with anyio.create_task_group() as group:
            for _ in range(60):
                group.start_soon(fetched, bus, source)
            await anyio.wait_all_tasks_blocked()
            with anyio.fail_after(60):
                assert await anyio.to_thread.run_sync(lambda: "free") == "free"
            fcntl.flock(lock, fcntl.LOCK_UN)


def test_submodules_are_checked_out_when_asked_for(
    repository: Repository, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the folder without them."""
    inner = Repository(tmp_path / "inner")
    repository.git("submodule", "--quiet", "add", inner.url, "inner")
    repository.git("commit", "--quiet", "-m", "with a part")
    # git refuses submodules at file:// unless it is told otherwise.
    for name, value in (("COUNT", "1"), ("KEY_0", "protocol.file.allow"), ("VALUE_0", "always")):
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    folder = fetch(GitSource(url=repository.url, include_submodules=True), home)
    assert value_in(folder / "inner") == "VALUE = 1"
    assert not (fetch(GitSource(url=repository.url), home) / "inner" / "beside.py").exists()


def test_what_cannot_be_had_is_said(
    repository: Repository, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repository, a branch, a commit, and git itself."""
    with pytest.raises(SourceFailed, match="nowhere"):
        fetch(GitSource(url=(home / "nowhere").as_uri()), home)
    with pytest.raises(SourceFailed, match="there is no 'refs/heads/gone'"):
        fetch(GitSource(url=repository.url, branch="gone"), home)
    with pytest.raises(SourceFailed, match="there is no '0000"):
        fetch(GitSource(url=repository.url, commit_sha="0" * 40), home)
    assert [p.name for p in home.rglob(".*") if p.name != ".git"] == []
    monkeypatch.setenv("PATH", str(home))
    with pytest.raises(SourceFailed, match="no `git` on this machine"):
        fetch(GitSource(url=repository.url), home)


@contextmanager
def web_server(root: Path) -> Iterator[tuple[str, list[str | None]]]:
    """Serve the files of a folder; yield the address, and the ``Authorization`` of each request."""
    seen: list[str | None] = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers["Authorization"])
            super().do_GET()

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(root)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_token_is_shown_and_kept_out_of_sight(home: Path, tmp_path: Path) -> None:
    """In the header of the request, and in no file of what was fetched."""
    with web_server(tmp_path) as (address, seen), pytest.raises(SourceFailed) as caught:
        fetch(GitSource(url=f"{address}/flows.git", username="ann"), home, token="s3cret")
    assert seen[0] == "Basic " + base64.b64encode(b"ann:s3cret").decode()
    assert "s3cret" not in str(caught.value)


def test_a_token_is_shown_to_the_host_of_its_repository_alone(
    repository: Repository, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A submodule may be on another host. What the environment sets for git stays set."""
    inner = Repository(tmp_path / "inner")
    with web_server(tmp_path) as (outer_address, shown), web_server(tmp_path) as (inner_address, elsewhere):
        repository.git("submodule", "--quiet", "add", inner.url, "inner")
        repository.git(
            "config", "--file", ".gitmodules", "submodule.inner.url", f"{inner_address}/inner/.git"
        )
        repository.git("commit", "--quiet", "-am", "with a part")
        for one in (repository, inner):
            one.git("update-server-info")
        monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
        monkeypatch.setenv("GIT_CONFIG_KEY_0", "http.userAgent")
        monkeypatch.setenv("GIT_CONFIG_VALUE_0", "mine")
        source = GitSource(url=f"{outer_address}/repository/.git", include_submodules=True)
        folder = fetch(source, home, token="s3cret")
    assert value_in(folder / "inner") == "VALUE = 1"
    assert None not in shown
    assert set(elsewhere) == {None}


def test_what_a_killed_fetch_has_left_goes_with_the_next(repository: Repository, home: Path) -> None:
    """Half a checkout is of no use to anybody."""
    source = GitSource(url=repository.url)
    folder = fetch(source, home)
    (folder.parent / ".left" / "flows").mkdir(parents=True)
    assert fetch(source, home) == folder
    assert not (folder.parent / ".left").exists()


def test_a_password_in_an_address_is_taken_out_of_it(home: Path) -> None:
    """Used here, as a token is; what would be kept with it is refused, saying what to do."""
    with pytest.raises(ValueError, match="name of a secret") as caught:
        GitSource(url="https://ann:s3cret@git.example.org/flows.git")
    assert "s3cret" not in str(caught.value)
    with pytest.raises(ValueError, match="dash"):
        GitSource(url="--upload-pack=sh")
    given = GitRepository("https://ann:s3cr%65t@git.example.org/flows.git")
    assert (given.source.url, given.source.username, given.token) == (
        "https://git.example.org/flows.git", "ann", "s3cret",
    )  # fmt: skip
    with pytest.raises(DefinitionError, match="readable in the deployment"):
        given.stored()


def test_a_flow_is_loaded_from_a_repository_or_a_folder(repository: Repository, home: Path) -> None:
    """By the decorator's own method, as in Prefect; what is not there is said."""
    loaded = flow.from_source(repository.url, entrypoint="repo_flows.py:answer")
    assert loaded() == 1
    assert flow.from_source(repository.root, "repo_flows.py:answer")() == 1
    assert (
        flow.from_source(LocalStorage(repository.root), "repo_flows.py:answer").with_options(name="x")() == 1
    )
    with pytest.raises(MissingFlow, match="did you mean 'answer'"):
        flow.from_source(str(repository.root), "repo_flows.py:answr")
    with pytest.raises(DefinitionError, match="Unsupported source type"):
        flow.from_source(3, "a.py:b")
    with pytest.raises(ValueError, match="both a branch and a commit"):
        GitRepository(repository.url, branch="a", commit_sha="b")


async def test_a_worker_fetches_what_it_runs(repository: Repository, home: Path, stage: Stage) -> None:
    """Sync and async flows, each run with the commit that is the newest then; nothing has to be at the same path."""
    with use_session(stage.bus):
        source = GitRepository(repository.url, pull_interval=0)
        sync = await flow.from_source(source, "repo_flows.py:answer")
        in_loop = await flow.afrom_source(source, "repo_flows.py:answer_async")
        await deploy(sync.to_deployment("sync"), await in_loop.ato_deployment("in-loop"))
    stored = await stage.control.deployment("sync")
    assert (stored.path, stored.flow) == (None, "repo_flows.py:answer")
    assert stored.source == GitSource(url=repository.url, pull_interval=0)
    async with stage.working():
        assert [(await stage.run(name)).state.result() for name in ("sync", "in-loop")] == [1, 1]
        repository.commit(5)
        assert [(await stage.run(name)).state.result() for name in ("sync", "in-loop")] == [5, 5]


async def test_a_run_whose_code_cannot_be_had_fails_and_says_so(home: Path, stage: Stage) -> None:
    """So does one whose secret is not there."""
    where = (home / "nowhere").as_uri()
    await stage.deploy("gone", source=GitSource(url=where))
    await stage.deploy("locked", source=GitSource(url=where, access_token="nothing"))
    async with stage.working():
        gone, locked = await stage.run("gone"), await stage.run("locked")
    assert gone.state_name == locked.state_name == "Failed"
    assert "cannot be had" in str(gone.state_message)
    assert "nothing" in str(locked.state_message)


async def test_tokens_stay_out_of_deployments(repository: Repository, home: Path, stage: Stage) -> None:
    """A saved secret is named; one that is written out is refused."""
    with use_session(stage.bus):
        written = GitRepository(repository.url, credentials={"access_token": "t0ken"})
        loaded = await flow.from_source(written, "repo_flows.py:answer")
        with pytest.raises(DefinitionError, match="readable in the deployment"):
            await deploy(loaded.to_deployment("a"))
        await Secret("t0ken").save("git")
        named = GitRepository(repository.url, credentials={"access_token": await Secret.load("git")})
        await deploy((await flow.from_source(named, "repo_flows.py:answer")).to_deployment("a"))
    stored = await stage.control.deployment("a")
    assert stored.source is not None
    assert stored.source.access_token == "git"
    assert "t0ken" not in stored.model_dump_json()
