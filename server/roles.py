"""The parts a service can be made of."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from ..errors import DefinitionError

__all__ = ["ALL_ROLES", "Role", "parse_roles"]


class Role(StrEnum):
    """What a process does. Servers and workers may be many; dispatchers and automations elect a leader."""

    SERVER = "server"
    DISPATCHER = "dispatcher"
    AUTOMATIONS = "automations"
    WORKER = "worker"


ALL_ROLES = frozenset(Role)


def parse_roles(words: Iterable[str]) -> frozenset[Role]:
    """Return the roles meant by ``words``; ``all`` is all of them, a comma separates several.

    Raises:
        DefinitionError: a word is no role.
    """
    roles: set[Role] = set()
    for word in (w.strip() for words_ in words for w in words_.split(",")):
        if word == "all":
            return ALL_ROLES
        try:
            roles.add(Role(word))
        except ValueError as exc:
            known = ", ".join([*(r.value for r in Role), "all"])
            raise DefinitionError(f"{word!r} is no role", hint=f"roles are {known}") from exc
    return frozenset(roles) or ALL_ROLES
