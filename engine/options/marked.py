"""What flows and tasks tell of themselves alike: how they are bound, and which hooks they have."""

from __future__ import annotations

from types import MethodType

from .hooks import Hook

__all__ = ["Marked"]


class Marked:
    """A function marked with ``@flow`` or ``@task``."""

    hooks: dict[str, list[Hook]]
    _binds: str

    @property
    def ismethod(self) -> bool:
        """Whether it is bound to an object or a class."""
        return isinstance(getattr(self, "fn", None), MethodType)

    @property
    def isclassmethod(self) -> bool:
        return self._binds == "class" or isinstance(
            getattr(getattr(self, "fn", None), "__self__", None), type
        )

    @property
    def isstaticmethod(self) -> bool:
        return self._binds == "nothing" and not self.ismethod

    @property
    def on_completion_hooks(self) -> list[Hook]:
        return self.hooks.get("on_completion", [])

    @property
    def on_failure_hooks(self) -> list[Hook]:
        return self.hooks.get("on_failure", [])

    @property
    def on_cancellation_hooks(self) -> list[Hook]:
        return self.hooks.get("on_cancellation", [])

    @property
    def on_crashed_hooks(self) -> list[Hook]:
        return self.hooks.get("on_crashed", [])
