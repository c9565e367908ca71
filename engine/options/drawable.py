"""What a flow can be asked about its picture: ``visualize``, ``generate_mermaid_graph``, and their async twins."""

from __future__ import annotations

from typing import Any

__all__ = ["Drawable"]


class Drawable:
    """The part of a flow that draws it. The flow's own code runs for that, its tasks and subflows do not."""

    name: str
    isasync: bool

    def visualize(self, *args: Any, **kwargs: Any) -> Any:
        """Write a picture of the flow, called with these arguments, to ``<name>.png``; return the path.

        Awaited in async code; elsewhere it is waited for, of async flows too.

        Raises:
            GraphvizImportError, GraphvizExecutableNotFoundError: what makes pictures is not installed.
            VisualizationUnsupportedError: the flow submits or maps tasks.
            FlowVisualizationError: no picture came of it.
            Exception: what the flow's own code raises.
        """
        from ..sync_async.either import is_async_here
        from ..utilities.asyncness import run_coro_as_sync
        from ..visualization import draw

        if is_async_here():
            return self.avisualize(*args, **kwargs)
        if self.isasync:
            return run_coro_as_sync(self.avisualize(*args, **kwargs))
        return draw(self, args, kwargs).render(self.name)  # type: ignore[arg-type]

    async def avisualize(self, *args: Any, **kwargs: Any) -> str:
        """Do what ``visualize`` does, in async code."""
        from anyio import to_thread

        from ..visualization import draw_async

        picture = await draw_async(self, args, kwargs)  # type: ignore[arg-type]
        return await to_thread.run_sync(picture.render, self.name)

    def generate_mermaid_graph(self, *args: Any, **kwargs: Any) -> Any:
        """Return the picture as a flowchart in Mermaid, which needs nothing installed; awaited as ``visualize`` is."""
        from ..sync_async.either import is_async_here
        from ..utilities.asyncness import run_coro_as_sync
        from ..visualization import draw

        if is_async_here():
            return self.agenerate_mermaid_graph(*args, **kwargs)
        if self.isasync:
            return run_coro_as_sync(self.agenerate_mermaid_graph(*args, **kwargs))
        return draw(self, args, kwargs).mermaid()  # type: ignore[arg-type]

    async def agenerate_mermaid_graph(self, *args: Any, **kwargs: Any) -> str:
        """Do what ``generate_mermaid_graph`` does, in async code."""
        from ..visualization import draw_async

        return (await draw_async(self, args, kwargs)).mermaid()  # type: ignore[arg-type]
