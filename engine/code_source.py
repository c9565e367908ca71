"""Code that a worker gets for itself before it runs it: a git repository, by the ``git`` command.

A repository is kept once as a mirror below ``HARK_HOME/sources``, and each commit that is run has a folder of its own beside it,
so that a run goes on with the code it began with when the next one brings newer code.
"""

from __future__ import annotations

import base64
import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar
from pydantic import BaseModel, ConfigDict, Field, field_validator

from ..config import load_settings
from ..errors import DefinitionError, SourceFailed, SourceUnknown
from ..vocabulary import new_id
from .secret import Secret
from .values import secret_store

if TYPE_CHECKING:
    from ..bus import Bus

__all__ = ["GitRepository", "GitSource", "LocalStorage", "fetch", "fetched", "source_of"]

KEPT = 20
"""Commits of a repository that stay checked out; those used longest ago go first."""
FETCH_S = 600.0
"""How long one git command may take."""
TURN_S = 1200.0
"""How long to wait while others bring the same repository up to date."""
LOOK_S = 0.1
"""Between two looks whether they have done."""
AT_ONCE = 4
"""Repositories that a worker fetches at once, in threads of their own: they may take long, and others wait for theirs."""


class GitSource(BaseModel):
    """Where a deployment's code is: a repository, and which commit of it.

    Attributes:
        url: ``https://…``, ``ssh://…``, ``git@host:…`` or ``file://…``; without credentials in it.
        branch, commit_sha: default: the repository's own default branch.
        access_token: name of the secret that is shown for ``https``; ``username`` goes with it.
        include_submodules: check them out too.
        pull_interval: seconds for which what was fetched is taken for new; 0: fetch for each run.
    """

    # Without the input in errors: an address that is refused may have a password in it.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, hide_input_in_errors=True)

    url: str
    branch: str | None = None
    commit_sha: str | None = None
    username: str | None = None
    access_token: str | None = None
    include_submodules: bool = False
    pull_interval: float = Field(60.0, ge=0)

    @field_validator("url")
    @classmethod
    def _is_shown(cls, url: str) -> str:
        if url.startswith("-"):
            raise ValueError("the address of a repository does not begin with a dash")
        if _userinfo(url):
            # It is kept in the deployment, in the mirror's configuration, and stands in errors.
            raise ValueError(
                "the address must not have a name or a password in it: give `username`, and as `access_token` "
                "the name of a secret (`hark secrets set`)"
            )
        return url


class LocalStorage:
    """Code in a folder of this machine: ``flow.from_source(LocalStorage("/srv/flows"), entrypoint=…)``."""

    def __init__(self, path: str | Path, pull_interval: int | None = None) -> None:
        self.path = Path(path).expanduser().absolute()
        self.pull_interval = pull_interval


class GitRepository:
    """Code in a git repository: ``GitRepository("https://host/flows.git", branch="main", credentials={"access_token": …})``.

    Args:
        credentials: a mapping with ``access_token`` (a ``Secret`` that was loaded or saved, or for use here alone a text) and
            perhaps ``username``; or a block with such fields.
    """

    def __init__(
        self,
        url: str,
        credentials: Mapping[str, Any] | object | None = None,
        name: str | None = None,
        branch: str | None = None,
        commit_sha: str | None = None,
        include_submodules: bool = False,
        pull_interval: int | None = 60,
    ) -> None:
        if branch and commit_sha:
            raise ValueError("Cannot provide both a branch and a commit SHA")
        fields = (
            credentials if isinstance(credentials, Mapping) else dict(getattr(credentials, "__dict__", {}))
        )
        token = fields.get("access_token") or fields.get("token")
        username = fields.get("username")
        if written := _userinfo(url):
            url = url.replace(f"{written}@", "", 1)
            name_there, _, password = written.partition(":")
            username, token = username or unquote(name_there), token or unquote(password) or None
        self.name = name or url.rstrip("/").rpartition("/")[2].removesuffix(".git")
        self.token: str | None = None
        if token is not None:
            self.token = str(token.get_secret_value() if hasattr(token, "get_secret_value") else token)
        self.source = GitSource(
            url=url, branch=branch, commit_sha=commit_sha, username=username,
            access_token=token.name if isinstance(token, Secret) else None, include_submodules=include_submodules,
            pull_interval=pull_interval or 0,
        )  # fmt: skip

    def stored(self) -> GitSource:
        """Return it as a deployment keeps it.

        Raises:
            DefinitionError: its token is not that of a saved secret, so no worker could read it.
        """
        if self.token is not None and self.source.access_token is None:
            raise DefinitionError(
                f"the access token of {self.source.url} would have to stand readable in the deployment",
                hint='save it, Secret(token).save("git"), and give credentials={"access_token": Secret.load("git")}',
            )
        return self.source


def source_of(given: object) -> GitRepository | LocalStorage:
    """Return what was given as a source of code: one of the above, a folder, or the address of a repository.

    Raises:
        SourceUnknown: it is none of these; also a ``TypeError``.
    """
    if isinstance(given, GitRepository | LocalStorage):
        return given
    if isinstance(given, Path):
        return LocalStorage(given)
    if isinstance(given, str):
        is_address = "://" in given or given.startswith("git@")
        return GitRepository(given.removeprefix("git+")) if is_address else LocalStorage(given)
    raise SourceUnknown(
        f"Unsupported source type {type(given).__name__!r}: {given!r}",
        hint="a folder, or the address of a git repository",
    )


def fetch(source: GitSource, home: Path, *, token: str | None = None) -> Path:
    """Return the folder in which the code of a source is checked out, bringing it up to date first. Blocks.

    Args:
        home: where repositories are kept.
        token: the access token, if it has one.
    Raises:
        SourceFailed: there is no git here; the repository, the branch or the commit cannot be had; or another process
            has been busy with the repository for too long.
    """
    if shutil.which("git") is None:
        raise SourceFailed(
            source.url, why="there is no `git` on this machine", hint="install git where the worker runs"
        )
    place = home / blake2b(source.url.encode(), digest_size=12).hexdigest()
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    git = _Git(source, token)
    with _alone(place / "lock", source.url):
        for left in place.glob(".*"):  # by a process that was killed in the middle
            _remove(left)
        mirror = place / "mirror.git"
        if not mirror.exists():
            draft = place / f".{new_id()}"
            git("clone", "--quiet", "--mirror", source.url, str(draft), cleanup=draft)
            draft.rename(mirror)
            _stamp(place)
        elif not _is_fresh(place, source, git, mirror):
            git("fetch", "--quiet", "--prune", "origin", "+refs/*:refs/*", at=mirror)
            _follow_head(git, mirror)
            _stamp(place)
        commit = git("rev-parse", "--verify", "--quiet", f"{_ref(source)}^{{commit}}", at=mirror).strip()
        folder = place / (f"{commit}-submodules" if source.include_submodules else commit)
        if not folder.exists():
            draft = place / f".{new_id()}"
            git("clone", "--quiet", "--no-checkout", "--shared", str(mirror), str(draft), cleanup=draft)
            git("checkout", "--quiet", "--detach", commit, at=draft, cleanup=draft)
            if source.include_submodules:
                # Their addresses may be relative to that of the repository itself.
                git("remote", "set-url", "origin", source.url, at=draft, cleanup=draft)
                git("submodule", "--quiet", "update", "--init", "--recursive", at=draft, cleanup=draft)
            draft.rename(folder)
        os.utime(folder)
        _prune(place)
    return folder


async def fetched(bus: Bus, source: GitSource) -> str:
    """Do what ``fetch`` does for a worker: with the token that is kept as a secret, below its home.

    Raises:
        SourceFailed; UnknownName, SecretUnreadable: of the token.
    """
    token = await secret_store(bus).get(source.access_token) if source.access_token else None
    home = load_settings().home_path / "sources"
    return str(await to_thread.run_sync(partial(fetch, source, home, token=token), limiter=_limiter()))


def _limiter() -> CapacityLimiter:
    """Return the threads of the running loop that fetch."""
    try:
        return _limiters.get()
    except LookupError:
        limiter = CapacityLimiter(AT_ONCE)
        _limiters.set(limiter)
        return limiter


_limiters: RunVar[CapacityLimiter] = RunVar("hark_fetching")


def _userinfo(url: str) -> str:
    """Return ``name:password`` of an ``http`` address, as it stands there; "" if there is none."""
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[0] if parts.scheme in ("http", "https") else ""


def _ref(source: GitSource) -> str:
    return source.commit_sha or (f"refs/heads/{source.branch}" if source.branch else "HEAD")


class _Git:
    def __init__(self, source: GitSource, token: str | None) -> None:
        self._source, self._token = source, token

    def __call__(self, *words: str, at: Path | None = None, cleanup: Path | None = None) -> str:
        """Run git and return what it printed. Raises ``SourceFailed``."""
        environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}  # env: the child's
        if self._token is not None:
            # Neither in the arguments, which everybody on the machine can read, nor in the repository's configuration.
            pair = f"{self._source.username or 'x-access-token'}:{self._token}"
            header = f"Authorization: Basic {base64.b64encode(pair.encode()).decode()}"
            parts = urlsplit(self._source.url)
            # For the repository's own host: submodules may be on others, which must not see the token.
            key = f"http.{parts.scheme}://{parts.netloc}/.extraHeader"
            count = int(environment.get("GIT_CONFIG_COUNT") or 0)
            environment |= {
                "GIT_CONFIG_COUNT": str(count + 1), f"GIT_CONFIG_KEY_{count}": key, f"GIT_CONFIG_VALUE_{count}": header,
            }  # fmt: skip
        try:
            ran = subprocess.run(
                ["git", *words],  # noqa: S607  whichever git is on the path
                check=False, cwd=at, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=FETCH_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            _remove(cleanup)
            raise SourceFailed(
                self._source.url, why=f"`git {words[0]}` took longer than {FETCH_S:g} s"
            ) from None
        if ran.returncode != 0:
            _remove(cleanup)
            said = ran.stderr.strip()[-500:] or f"there is no {_ref(self._source)!r}"
            raise SourceFailed(self._source.url, why=said)
        return ran.stdout


def _is_fresh(place: Path, source: GitSource, git: _Git, mirror: Path) -> bool:
    """Whether what is here is new enough; a commit that is here never gets newer."""
    if source.commit_sha is not None:
        with suppress(SourceFailed):
            git("cat-file", "-e", f"{source.commit_sha}^{{commit}}", at=mirror)
            return True
        return False
    try:
        fetched_at = (place / "fetched").stat().st_mtime
    except FileNotFoundError:
        return False
    return time.time() - fetched_at < source.pull_interval


def _follow_head(git: _Git, mirror: Path) -> None:
    """Have the mirror's default branch be the repository's own as it is now; fetching does not change it."""
    for line in git("ls-remote", "--symref", "origin", "HEAD", at=mirror).splitlines():
        if line.startswith("ref: ") and (branch := line[5:].split("\t")[0]).startswith("refs/"):
            git("symbolic-ref", "HEAD", branch, at=mirror)


def _stamp(place: Path) -> None:
    (place / "fetched").touch()


def _prune(place: Path) -> None:
    folders = [folder for folder in place.iterdir() if len(folder.name) >= 40 and folder.is_dir()]
    folders.sort(key=lambda folder: folder.stat().st_mtime, reverse=True)
    for folder in folders[KEPT:]:
        _remove(folder)


def _remove(folder: Path | None) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _alone(file: Path, url: str) -> Generator[None]:
    """Hold a lock that ends with this process: workers of one machine share the repositories.

    Raises:
        SourceFailed: others have held it for ``TURN_S``.
    """
    deadline = time.monotonic() + TURN_S
    with file.open("w") as held:
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise SourceFailed(
                        url, why=f"another process of this machine has been fetching it for {TURN_S:g} s",
                        hint=f"see what holds {file}, and end it",
                    ) from None  # fmt: skip
                time.sleep(LOOK_S)
            else:
                break
        yield
