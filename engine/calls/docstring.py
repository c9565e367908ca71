"""What the docstring of a function says of its parameters, in Google's, NumPy's or Sphinx's way of writing."""

from __future__ import annotations

import re
from inspect import cleandoc

__all__ = ["parameter_descriptions"]

_SECTION = re.compile(r"^(Args|Arguments|Parameters|Params):?\s*$")
_OTHER_SECTION = re.compile(r"^[A-Z]\w+:\s*$")
_GOOGLE = re.compile(r"^\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)$")
_NUMPY = re.compile(r"^\*{0,2}(\w+)\s*(?::.*)?$")
_SPHINX = re.compile(r"^:param\s+(?:[^:]*\s)?\*{0,2}(\w+)\s*:\s*(.*)$")


def parameter_descriptions(docstring: str | None) -> dict[str, str]:
    """Return the description of each parameter that the docstring describes, by name, on one line each."""
    if not docstring:
        return {}
    lines = cleandoc(docstring).splitlines()
    found = _sphinx(lines)
    for i, line in enumerate(lines):
        if _SECTION.match(line):
            underlined = i + 1 < len(lines) and re.fullmatch(r"-{3,}", lines[i + 1].strip())
            found.update(_numpy(lines[i + 2 :]) if underlined else _google(lines[i + 1 :]))
            break
    return {name: text for name, text in found.items() if text}


def _google(lines: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    name, indent = None, 0
    for line in lines:
        depth = len(line) - len(line.lstrip())
        if line.strip() and depth == 0:
            break
        match = _GOOGLE.match(line.strip())
        if match and (name is None or depth <= indent):
            name, indent = match[1], depth
            found[name] = match[2].strip()
        elif name is not None and line.strip():
            found[name] = f"{found[name]} {line.strip()}".strip()
    return found


def _numpy(lines: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    name = None
    for i, line in enumerate(lines):
        if i + 1 < len(lines) and re.fullmatch(r"-{3,}", lines[i + 1].strip()):
            break
        if line.strip() and not line.startswith(" "):
            match = _NUMPY.match(line)
            if not match or _OTHER_SECTION.match(line):
                break
            name = match[1]
            found[name] = ""
        elif name is not None and line.strip():
            found[name] = f"{found[name]} {line.strip()}".strip()
    return found


def _sphinx(lines: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    name = None
    for line in lines:
        match = _SPHINX.match(line)
        if match:
            name = match[1]
            found[name] = match[2].strip()
        elif name is not None and line.startswith(" ") and line.strip():
            found[name] = f"{found[name]} {line.strip()}"
        else:
            name = None
    return found
