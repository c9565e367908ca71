"""Whether a flow is being drawn, asked by every call of a task: kept apart, so that the answer "no" costs next to nothing."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from ...errors import DefinitionError

if TYPE_CHECKING:
    from ..visualization import Picture

__all__ = ["Drawing", "VisualizationUnsupportedError", "drawing"]


class VisualizationUnsupportedError(DefinitionError):
    """The flow does something that has no place in a picture: ``.submit``, ``.map``, ``.delay``."""


class Drawing:
    """The pictures being made now in this process, of which each context sees its own."""

    def __init__(self) -> None:
        self.count = 0
        self._picture: ContextVar[Any] = ContextVar("hark_picture", default=None)

    @property
    def picture(self) -> Picture | None:
        """The picture that the code is drawn into; None if it is not. Ask ``count`` first."""
        found: Picture | None = self._picture.get()
        return found

    @contextmanager
    def into(self, picture: Picture) -> Generator[None]:
        """Have calls of tasks inside the block drawn, and not made."""
        token = self._picture.set(picture)
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1
            self._picture.reset(token)

    def refuse(self, what: str) -> None:
        """Raise ``VisualizationUnsupportedError`` if the code is being drawn: ``what`` has no place in a picture."""
        if self.picture is not None:
            raise VisualizationUnsupportedError(
                f"`{what}` is not currently supported by `flow.visualize()`",
                hint="call the task directly where the flow is drawn",
            )


drawing = Drawing()
