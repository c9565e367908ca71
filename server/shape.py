"""A node of a file held against a pydantic model: the model, or every fault with its place and a suggestion."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from ..automations.problem import in_plain_words
from ..errors import HarkError
from ..vocabulary import JsonValue
from .fault import Fault, did_you_mean
from .yaml_source import Node

__all__ = ["dotted", "shape"]

M = TypeVar("M", bound=BaseModel)


def shape(
    model: type[M], node: Node, *, path: Sequence[str | int], value: JsonValue
) -> tuple[M | None, list[Fault]]:
    """Return the model made of ``value``, or None and all that is wrong with it.

    Args:
        node: where the value stood, for the places of the faults. ``value`` may have more in it than the node
            (a name taken from the key above) or less (parts that are checked on their own).
        path: the way to the node from the root of the file, for the faults' ``path``.
    """
    try:
        return model.model_validate(value), []
    except ValidationError as exc:
        return None, _faults(exc, model, node, path)
    except HarkError as exc:
        return None, [Fault(node.at, str(exc), dotted(path), exc.hint)]
    except RecursionError:
        return None, [Fault(node.at, "it nests too deep", dotted(path), "take the innermost parts out")]


def dotted(path: Sequence[str | int]) -> str:
    """Return a path as people write it: ``deployments.nightly.schedules[0].cron``."""
    out = ""
    for part in path:
        out += f"[{part}]" if isinstance(part, int) else f".{part}" if out else str(part)
    return out


def _faults(
    exc: ValidationError, model: type[BaseModel], node: Node, path: Sequence[str | int]
) -> list[Fault]:
    found: list[Fault] = []
    for error in exc.errors(include_url=False):
        fault = _fault(error, model, node, path)
        # A union says the same of each of its members; one line per place and message is enough.
        if fault not in found:
            found.append(fault)
    return _without_union_noise(found)


def _fault(error: Any, model: type[BaseModel], node: Node, path: Sequence[str | int]) -> Fault:
    kind, loc = error["type"], tuple(error["loc"])
    inside, at_node, place = node, node, node.at
    below = _in_file(node, loc)
    for part in below:
        child = inside.children[part]
        place = inside.keys.get(part, child.at) if isinstance(part, str) else child.at
        at_node, inside = inside, child
    walked = [*path, *below]
    message, suggestion = str(error["msg"]), ""
    last = str(loc[-1]) if loc else ""
    match kind:
        case "extra_forbidden":
            message = f"{last!r} is not known here"
            known = set(_fields_at(model, below[:-1] if below and below[-1] == loc[-1] else below))
            suggestion = did_you_mean(last, known - {str(k) for k in at_node.children})
            if not suggestion and known:
                suggestion = "known are " + ", ".join(sorted(known)[:20])
        case "missing":
            message = f"{last!r} is missing"
            suggestion = f"add `{last}:`"
            place = inside.at
        case "value_error":
            message = message.removeprefix("Value error, ")
            cause = (error.get("ctx") or {}).get("error")
            suggestion = cause.hint if isinstance(cause, HarkError) else ""
            place = inside.at if loc else place
        case "literal_error" | "enum":
            expected = str((error.get("ctx") or {}).get("expected", ""))
            message = f"{error['input']!r} is not one of {expected}"
            words = [w.strip("' ") for w in expected.replace(" or ", ",").split(",")]
            suggestion = did_you_mean(str(error["input"]), words)
            place = inside.at
        case "definition":
            # Rules find their faults themselves and say them whole.
            place = place if message.startswith("unknown ") else inside.at
        case "union_tag_invalid":
            message, place = message[0].lower() + message[1:], inside.at
        case _:
            shown = error["input"] if not isinstance(error["input"], dict | list) else None
            got = f", got {shown!r}" if shown is not None else ""
            message = in_plain_words(error)
            message = message[0].lower() + message[1:] + got
            place = inside.at
    if "did you mean" in message:
        message, _, tail = message.partition("did you mean")
        message, suggestion = (
            message.rstrip(" ;,("),
            f"did you mean{tail if '(' in tail else tail.rstrip(')')}",
        )
    return Fault(place, message, dotted(walked if kind != "missing" else [*walked, last]), suggestion)


def _in_file(node: Node, loc: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """Return the parts of ``loc`` that are keys and indexes of the file; the others name members of unions.

    A member may be named like a key beside it (the kind ``cron`` of a schedule has a key ``cron``), so of the ways
    to read ``loc`` the one is taken that ends at its last part, and else the longest.
    """
    if not loc:
        return ()
    without = _in_file(node, loc[1:])
    child = node.children.get(loc[0])
    if child is None:
        return without
    taken = (loc[0], *_in_file(child, loc[1:]))

    def ends_right(way: tuple[str | int, ...]) -> bool:
        return bool(way) and way[-1] == loc[-1]

    if ends_right(without) and not ends_right(taken):
        return without
    return taken if len(taken) >= len(without) or ends_right(taken) else without


def _without_union_noise(faults: list[Fault]) -> list[Fault]:
    """Drop "should be a string" beside a better fault further inside the same value: the other arm of a union."""
    kept: list[Fault] = []
    for fault in faults:
        deeper = any(
            other is not fault
            and other.path != fault.path
            and other.path.startswith((fault.path + ".", fault.path + "["))
            for other in faults
        )
        vague = fault.message.startswith(("input should be", "should be", "this is "))
        if not (vague and deeper and fault.path):
            kept.append(fault)
    return kept


def _fields_at(model: Any, loc: Sequence[str | int]) -> Iterator[str]:
    """Yield the field names a mapping at ``loc`` inside ``model`` may have, over all members of unions."""
    here: list[Any] = [model]
    for part in loc:
        below = [t for one in here for t in _step(one, part)]
        here = below or here
    for one in here:
        for cls in _models(one):
            for name, info in cls.model_fields.items():
                yield info.alias or name


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif isinstance(annotation, typing.TypeAliasType if hasattr(typing, "TypeAliasType") else ()):
        yield from _models(annotation.__value__)
    elif get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _models(member)
    elif get_origin(annotation) is Annotated:
        yield from _models(get_args(annotation)[0])


def _step(annotation: Any, part: str | int) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _step(get_args(annotation)[0], part)
    elif origin in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _step(member, part)
    elif origin in (list, tuple, set, frozenset, Sequence) and isinstance(part, int):
        yield from [a for a in get_args(annotation) if a is not Ellipsis]
    elif origin is not None and isinstance(part, str) and len(get_args(annotation)) == 2:
        yield get_args(annotation)[1]
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, info in annotation.model_fields.items():
            if part in (name, info.alias):
                yield info.annotation
