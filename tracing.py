"""Spans for OpenTelemetry, where the process has its SDK loaded; nothing at all where it has not.

The context travels in the ``traceparent`` of events (W3C Trace Context), so one trace leads from an ``emit`` through the
rule that fired and its action to the flow run and its tasks, whatever processes they are in. Nothing of OpenTelemetry is
imported here unless somebody else has imported its SDK.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from opentelemetry.context import Context

__all__ = ["Span", "begin_span", "current_traceparent", "is_tracing", "span"]

Kind: TypeAlias = Literal["internal", "producer", "consumer"]
_SDK = "opentelemetry.sdk.trace"


def is_tracing() -> bool:
    """Return whether spans go anywhere: whether this process has loaded an SDK."""
    return _SDK in sys.modules


class Span:
    """A span that has begun; ``end`` it once."""

    __slots__ = ("_span",)

    def __init__(self, span: Any) -> None:
        self._span = span

    @property
    def traceparent(self) -> str:
        """How it is named in the events that follow from it."""
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"

    def attached(self) -> AbstractContextManager[object]:
        """Make it the parent of the spans that begin inside the block, the author's own among them."""
        from opentelemetry.trace import use_span

        return use_span(self._span, end_on_exit=False, record_exception=False, set_status_on_exception=False)

    def set(self, name: str, value: str | int | float | bool) -> None:
        """Add an attribute."""
        self._span.set_attribute(name, value)

    def fail(self, why: str | None, exc: object = None) -> None:
        """Say that what it stands for failed."""
        from opentelemetry.trace import Status, StatusCode

        if isinstance(exc, BaseException):
            self._span.record_exception(exc)
        self._span.set_status(Status(StatusCode.ERROR, why))

    def end(self) -> None:
        self._span.end()


def begin_span(
    name: str,
    *,
    kind: Kind = "internal",
    parent: str | None = None,
    attributes: Mapping[str, str | int | float | bool | None] | None = None,
) -> Span | None:
    """Begin a span; None where nothing is traced.

    Args:
        parent: the ``traceparent`` of what it follows from. Default, also if that is none: the span the code is in.
        attributes: those that are None are left out.
    """
    if not is_tracing():
        return None
    from opentelemetry import trace

    found = {key: value for key, value in (attributes or {}).items() if value is not None}
    tracer = trace.get_tracer("hark")
    return Span(
        tracer.start_span(name, context=_context(parent), kind=trace.SpanKind[kind.upper()], attributes=found)
    )


def span(
    name: str,
    *,
    kind: Kind = "internal",
    parent: str | None = None,
    attributes: Mapping[str, str | int | float | bool | None] | None = None,
) -> AbstractContextManager[Span | None]:
    """Be in a span for the length of the block; what the block raises fails it. See ``begin_span``."""
    begun = begin_span(name, kind=kind, parent=parent, attributes=attributes)
    return _UNTRACED if begun is None else _in_span(begun)


_UNTRACED: nullcontext[None] = nullcontext()


@contextmanager
def _in_span(begun: Span) -> Generator[Span]:
    try:
        with begun.attached():
            yield begun
    except BaseException as exc:
        begun.fail(type(exc).__name__, exc)
        raise
    finally:
        begun.end()


def current_traceparent() -> str | None:
    """Return the ``traceparent`` of the span the code is in; None if it is in none."""
    if not is_tracing():
        return None
    from opentelemetry import trace

    current = trace.get_current_span()
    return Span(current).traceparent if current.get_span_context().is_valid else None


def _context(parent: str | None) -> Context | None:
    if parent is None:
        return None
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = TraceContextTextMapPropagator().extract({"traceparent": parent})
    # Not a traceparent: anybody may have written the event.
    return context if trace.get_current_span(context).get_span_context().is_valid else None
