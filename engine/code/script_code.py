"""Where the code of a plain call is, so that its hooks can be called once its process is gone.

No deployment says how a flow is found that a program called itself, so the run does: the first transition of a run that owes hooks
has the file, what was in it, and whose process on which machine had loaded it (``CODE`` among the details of its state). A worker
on that machine, of the same user, that finds the same file loads it under its module's name, never as ``__main__``, in a process
of its own. What would run its program again by being loaded is not loaded: that is found out while the program runs.
"""

from __future__ import annotations

import ast
import os
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

from ...errors import HarkError
from ...vocabulary import FlowRunId, JsonObject
from ..options.hooks import tasks_have_hooks
from .named_code import NO_NAME, module_names, name_here

if TYPE_CHECKING:
    from ..context import FlowRunContext
    from ..flows import Flow
    from ..runs.run_log import RunLog

__all__ = [
    "CODE",
    "NO_CODE",
    "ScriptCode",
    "code_of_call",
    "loading",
    "recorded_code",
    "refuse_while_loading",
]

CODE = "code"
"""The member of the details of a run's first state."""

NO_CODE = "its first transition does not say where its code is, or has left the log"
_GUARD = 'if __name__ == "__main__":'


@dataclass(frozen=True, slots=True)
class ScriptCode:
    """Where the flow of a plain call is found.

    Attributes:
        host, uid: the machine, and whose process it was there.
        root: the folder that imports begin at.
        file: absolute; "" if the code is in none.
        digest: of the file's content when the process first called a flow in it.
        why: why nobody else can load it; None if it can be.
    """

    host: str
    uid: int
    root: str
    file: str
    digest: str
    why: str | None = None

    def to_json(self) -> JsonObject:
        return asdict(self)

    @classmethod
    def from_details(cls, details: object) -> Self | None:
        """Return what a run's first state says; None if it says nothing of the kind. What only later versions say is passed over."""
        said = details.get(CODE) if isinstance(details, dict) else None
        if not isinstance(said, dict):
            return None
        try:
            return cls(**{field.name: said[field.name] for field in fields(cls) if field.name in said})
        except TypeError:  # of another version
            return None

    @property
    def is_here(self) -> bool:
        """Whether this process is on the same machine, and the same user's."""
        return self.host == socket.gethostname() and self.uid == os.getuid()

    def problem(self) -> str | None:
        """Return why this process cannot load it; None if it can. Reads the file."""
        if self.why is not None:
            return self.why
        if not self.is_here:
            return f"its code is {self.file} on {self.host}, of user {self.uid} there, and no worker of theirs took it"
        try:
            found = _digest(Path(self.file).read_bytes())
        except OSError as exc:
            return f"its code, {self.file}, cannot be read: {exc.strerror or exc}"
        return None if found == self.digest else f"{self.file} is not what it was when the run began"


def code_of_call(flow: Flow[..., Any], above: FlowRunContext | None) -> tuple[str, ScriptCode] | None:
    """Return (entrypoint, code) of a flow that is called here; None where a worker runs what is above, or nothing is owed to it.

    Called where the flow is, in its thread.
    """
    if not any(flow.hooks.values()) and not tasks_have_hooks():
        return None
    top = above
    while top is not None and top.parent is not None and top.parent.flow_context is not None:
        top = top.parent.flow_context
    if top is not None and top.flow_run.pool is not None:
        return None
    names = module_names(flow)
    module, what = name_here(flow) or ("__main__", f"{flow.name}.{NO_NAME}")
    where, root, file = _place(names, module)
    why: str | None
    if not file:
        why = f"its code is in no file: {what.removesuffix(f'.{NO_NAME}')} of {module}"
    elif "<" in what:
        what_ = what.removesuffix(f".{NO_NAME}")
        why = (
            f"{what_} of {file} was made while its program ran, so no other process can find it; "
            "give it a name at the top of a module, with_options included"
        )
    else:
        why = _why_unloadable(names, file, is_main=module == "__main__")
    digest = _digest_of(file) if file and why is None else ""
    if why is None and not digest:
        why = f"its code, {file}, could not be read"
    return f"{where}:{what}", ScriptCode(socket.gethostname(), os.getuid(), root, file, digest, why)


async def recorded_code(runs: RunLog, run_id: FlowRunId) -> ScriptCode | None:
    """Return where the code of a plain call is, by its first transition; None if that does not say, or has left the log."""
    history = await runs.history(run_id)
    data = history[0].event.data if history else None
    state = data.get("state") if isinstance(data, dict) else None
    return ScriptCode.from_details(state.get("details") if isinstance(state, dict) else None)


# --- loading --------------------------------------------------------------------------------------------

_loading: list[str] = []
"""The file that this process loads for its hooks, if it does. All its threads are meant."""


@contextmanager
def loading(file: str) -> Iterator[None]:
    """Let no flow begin in this process: a file is loaded for its hooks."""
    _loading.append(file)
    try:
        yield
    finally:
        _loading.remove(file)


def refuse_while_loading(flow_name: str) -> None:
    """Raise ``HarkError`` while a file is loaded for its hooks."""
    if _loading:
        raise HarkError(
            f"{_loading[-1]} calls flow {flow_name!r} when it is imported, as it is here to have hooks called",
            hint=f"put the call under `{_GUARD}`",
        )


# --- what the process that calls the flow knows ------------------------------------------------------------


def _place(names: Mapping[str, Any], module: str) -> tuple[str, str, str]:
    """Return (what the entrypoint says before the colon, the folder imports begin at, the file)."""
    file = names.get("__file__")
    if not isinstance(file, str) or not file.endswith(".py"):
        return module, "", ""
    path = Path(os.path.abspath(file))
    spec = names.get("__spec__")
    # A file that was run by its path has no name that it could be imported by; one run with ``-m`` has.
    name = module if module != "__main__" else getattr(spec, "name", None)
    if name:
        parts = name.split(".")
        own = path.with_suffix("") if path.name != "__init__.py" else path.parent
        if list(own.parts[-len(parts) :]) == parts:
            return name, str(own.parents[len(parts) - 1]), str(path)
    return str(path), str(path.parent), str(path)


def _why_unloadable(names: Mapping[str, Any], file: str, *, is_main: bool) -> str | None:
    """Return why loading the file would run what the program does; None if it would not.

    Code at the top of a module that is being executed now is on the way to this call, so to load the module would come
    here again: unless it stands where only ``__main__`` comes to.
    """
    guarded = _guarded_lines(file)
    lines = [line for frame in _frames() if (line := _line_in(frame, names)) is not None]
    for line in lines:
        if not any(first <= line <= last for first, last in guarded):
            return (
                f"to load {file} would run the program again, which calls the flow in line {line}; "
                f"put the call under `{_GUARD}`"
            )
    if is_main and not lines and not guarded:
        return f"to load {file} might run the program again; put what it does under `{_GUARD}`"
    return None


def _frames() -> Iterator[FrameType]:
    """Give what this thread and the main one are executing."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back
    main = threading.main_thread()
    if threading.current_thread() is not main:
        frame = sys._current_frames().get(main.ident or 0)
        while frame is not None:
            yield frame
            frame = frame.f_back


def _line_in(frame: FrameType, names: Mapping[str, Any]) -> int | None:
    """Return the line that a frame is at if it executes the top of the module with these names."""
    return frame.f_lineno if frame.f_globals is names and frame.f_code.co_name == "<module>" else None


@lru_cache(maxsize=256)
def _guarded_lines(file: str) -> tuple[tuple[int, int], ...]:
    """Return (first, last) of the blocks of a file that only ``__main__`` executes."""
    try:
        tree = ast.parse(Path(file).read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return ()
    blocks = [node.body for node in ast.walk(tree) if isinstance(node, ast.If) and _is_guard(node.test)]
    return tuple((body[0].lineno, body[-1].end_lineno or body[-1].lineno) for body in blocks)


def _is_guard(test: ast.expr) -> bool:
    """Whether a condition holds in ``__main__`` only."""
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return any(map(_is_guard, test.values))
    if not isinstance(test, ast.Compare) or len(test.ops) != 1 or not isinstance(test.ops[0], ast.Eq):
        return False
    sides = (test.left, test.comparators[0])
    return any(isinstance(side, ast.Name) and side.id == "__name__" for side in sides) and any(
        isinstance(side, ast.Constant) and side.value == "__main__" for side in sides
    )


@lru_cache(maxsize=256)
def _digest_of(file: str) -> str:
    """Return the digest of a file as it is at the first call: what is written into it later is not what this process runs."""
    try:
        return _digest(Path(file).read_bytes())
    except OSError:
        return ""


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()
