"""Keys, hosts and origins: the pure rules."""

from __future__ import annotations

import base64

import pytest
from hark.bus import Bus
from hark.errors import AccessDenied, DefinitionError, UnknownName
from hark.server.access import AccessKeys, cross_site, host_allowed, is_loopback, token_of


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True), ("localhost:4280", True), ("127.0.0.1:80", True), ("127.8.9.1", True), ("[::1]:4280", True),
        ("", False), ("evil.example", False), ("127.0.0.1.evil.example", False), ("localhost.evil.example", False),
        ("10.0.0.1", False), ("hark.internal:80", True), ("[", False), ("user@localhost", True),
    ],
)  # fmt: skip
def test_only_names_of_this_machine_are_allowed(host: str, allowed: bool) -> None:
    """A name of another site that points here is not ours."""
    assert host_allowed(host, extra=frozenset({"hark.internal"})) is allowed


def test_loopback_is_what_only_this_machine_reaches() -> None:
    """Addresses of interfaces and the unspecified address are not."""
    assert [is_loopback(h) for h in ("127.0.0.1", "::1", "localhost", "[::1]")] == [True] * 4
    assert [is_loopback(h) for h in ("0.0.0.0", "::", "192.168.1.2", "hark.example", "")] == [False] * 5


@pytest.mark.parametrize(
    ("method", "headers", "is_cross"),
    [
        ("GET", {"sec-fetch-site": "cross-site"}, False),
        ("POST", {}, False),
        ("POST", {"sec-fetch-site": "same-origin"}, False),
        ("POST", {"sec-fetch-site": "none"}, False),
        ("POST", {"sec-fetch-site": "same-site"}, True),
        ("DELETE", {"sec-fetch-site": "cross-site"}, True),
        ("POST", {"origin": "http://localhost:1", "host": "localhost:1"}, False),
        ("POST", {"origin": "http://localhost:2", "host": "localhost:1"}, True),
        ("PUT", {"origin": "null", "host": "localhost:1"}, True),
    ],
)
def test_a_browser_acting_for_another_site_is_noticed(
    method: str, headers: dict[str, str], is_cross: bool
) -> None:
    """By what browsers say of themselves; programs say nothing and are let through."""
    assert cross_site(method, headers) is is_cross


def test_a_token_is_read_from_either_scheme() -> None:
    """`Bearer`, or the password of `Basic`; nonsense is an empty token, which no key is."""
    basic = base64.b64encode(b"me:tok:en").decode()
    assert token_of({"authorization": "Bearer abc"}) == "abc"
    assert token_of({"authorization": f"basic {basic}"}) == "tok:en"
    assert token_of({"authorization": "Basic ???"}) == ""
    assert token_of({}) is None


async def test_a_key_works_until_it_is_revoked_also_elsewhere(bus: Bus) -> None:
    """Keys are followed live: another server hears of a new and of a revoked one."""
    async with AccessKeys(bus) as here, AccessKeys(bus) as there:
        assert here.is_open
        assert here.check(None) == "anyone"
        info, token = await here.create("ann")
        assert here.check(token) == "ann"
        while there.is_open:
            await there.changed()
        assert there.check(token) == "ann"
        for wrong in (
            None,
            "",
            token[:-1] + ("a" if token[-1] != "a" else "b"),
            token.replace(info.id, "0" * 12),
        ):
            with pytest.raises(AccessDenied):
                there.check(wrong)
        await here.create("ann")
        with pytest.raises(DefinitionError, match="2 keys are named"):
            await here.revoke("ann")
        with pytest.raises(UnknownName):
            await here.revoke("bob")
        assert (await here.revoke(info.id)).name == "ann"
        with pytest.raises(AccessDenied):
            here.check(token)
        with pytest.raises(DefinitionError):
            await here.create("no/name")
