"""Pictures of flows: which tasks it calls, and what goes from one to the next. No task runs for it, but the flow's own code does."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import DefinitionError, UnavailableError
from .calls.nested import replace_leaves
from .options.drawing import VisualizationUnsupportedError, drawing

if TYPE_CHECKING:
    from .flows import Flow

__all__ = [
    "FlowVisualizationError", "GraphvizExecutableNotFoundError", "GraphvizImportError", "Picture", "VisualizationUnsupportedError",
    "VizTask", "draw", "draw_async",
]  # fmt: skip


class FlowVisualizationError(DefinitionError):
    """A picture could not be made."""


class GraphvizImportError(UnavailableError, ImportError):
    """The library ``graphviz`` is not installed."""


class GraphvizExecutableNotFoundError(UnavailableError):
    """The program ``dot`` is not installed."""


class VizTask:
    """A call in the picture; what a task without a ``viz_return_value`` returns there."""

    def __init__(self, name: str, upstream_tasks: list[VizTask] | None = None) -> None:
        self.name = name
        self.upstream_tasks = upstream_tasks or []


class Picture:
    """The calls of one flow, in their order."""

    def __init__(self) -> None:
        self.tasks: list[VizTask] = []
        self._times: dict[str, int] = {}
        self._made_by: dict[int, tuple[Any, VizTask]] = {}
        """By the identity of what a call gave, which is kept, since another thing could get its address."""

    def add(self, name: str, parameters: Mapping[str, Any], value: Any) -> Any:
        """Note a call, and return what stands for its result: ``value``, or the call itself where that is None."""
        upstream: dict[int, VizTask] = {}

        def look(leaf: Any) -> Any:
            found = leaf if isinstance(leaf, VizTask) else self._maker_of(leaf)
            if found is not None:
                upstream[id(found)] = found
            return leaf

        for parameter in parameters.values():
            look(parameter)
            replace_leaves(parameter, look)
        number = self._times.get(name, -1) + 1
        self._times[name] = number
        task = VizTask(f"{name}-{number}", list(upstream.values()))
        self.tasks.append(task)
        if value is None:
            return task
        # Of these there is one object for all places in a program, which says nothing of where it comes from.
        if not isinstance(value, bool) and not (isinstance(value, int) and -5 <= value <= 256):
            self._made_by[id(value)] = value, task
        return value

    def _maker_of(self, leaf: Any) -> VizTask | None:
        known = self._made_by.get(id(leaf))
        return known[1] if known is not None else None

    def call(self, name: str, parameters: Mapping[str, Any], value: Any, *, is_async: bool) -> Any:
        """Do what ``add`` does for a call; of an async one, return something to await."""
        return self._later(name, parameters, value) if is_async else self.add(name, parameters, value)

    async def _later(self, name: str, parameters: Mapping[str, Any], value: Any) -> Any:
        return self.add(name, parameters, value)

    def mermaid(self) -> str:
        """Return it as a flowchart in Mermaid."""
        ids = {task.name: "".join(c if c.isalnum() else "_" for c in task.name) for task in self.tasks}
        lines = ["flowchart TD", *(f'    {ids[task.name]}["{task.name}"]' for task in self.tasks)]
        lines += [
            f"    {ids[above.name]} --> {ids[task.name]}"
            for task in self.tasks
            for above in task.upstream_tasks
        ]
        return "\n".join(lines)

    def render(self, name: str) -> str:
        """Write it to ``<name>.png`` in the working folder, and show it where the machine can; return the path.

        Raises:
            GraphvizImportError, GraphvizExecutableNotFoundError: what makes pictures is not installed.
            FlowVisualizationError: it did not make one.
        """
        graphviz = _graphviz()
        graph = graphviz.Digraph()
        for task in self.tasks:
            graph.node(task.name)
            for above in task.upstream_tasks:
                graph.edge(above.name, task.name)
        can_show = sys.platform in ("darwin", "win32") or shutil.which("xdg-open") is not None
        try:
            path: str = graph.render(filename=name, view=can_show, format="png", cleanup=True)
        except graphviz.ExecutableNotFound as exc:
            raise GraphvizExecutableNotFoundError(
                "the program `dot` of Graphviz is not on the PATH",
                hint="install it, from https://graphviz.org/download or your system's packages, or use "
                "generate_mermaid_graph()",
            ) from exc
        except Exception as exc:
            raise FlowVisualizationError(f"Graphviz did not make a picture of {name!r}: {exc}") from exc
        return path


def draw(flow: Flow[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Picture:
    """Call the function of a sync flow with its tasks drawn, and return the picture. Raises what the function raises."""
    picture = Picture()
    with drawing.into(picture):
        try:
            flow.fn(*args, **kwargs)
        except Exception as exc:
            raise _explained(exc) from exc
    return picture


async def draw_async(flow: Flow[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Picture:
    """Do what ``draw`` does, of a flow of either kind."""
    picture = Picture()
    with drawing.into(picture):
        try:
            found: Any = flow.fn(*args, **kwargs)
            if isinstance(found, Coroutine):
                await found
        except Exception as exc:
            raise _explained(exc) from exc
    return picture


def _explained(exc: Exception) -> Exception:
    """Return an exception of the flow's code, with what may be the reason that it came."""
    if isinstance(exc, VisualizationUnsupportedError):
        return exc
    hint = (
        "In a picture no task runs. Code of the flow that uses the result of one needs a stand-in for it: "
        "@task(viz_return_value=[1, 2, 3])"
    )
    try:
        return type(exc)(f"{exc}\n{hint}")
    except Exception:  # its class takes other arguments than a text
        exc.add_note(hint)
        return exc


def _graphviz() -> Any:
    try:
        import graphviz  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as exc:
        raise GraphvizImportError(
            "pictures of flows need the library graphviz, which is not installed",
            hint="pip install 'hark[graphviz]', or use generate_mermaid_graph()",
        ) from exc
    return graphviz
