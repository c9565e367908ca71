"""Secrets: encrypted where they lie, resolved only where they are read, and never in a text somebody sees."""

from __future__ import annotations

import asyncio
import json
import stat
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from cryptography.fernet import Fernet
from hark.bus import Bus
from hark.bus.secret import LateValues, Redactor, SecretStore, SecretText, secret_key, shown_url
from hark.errors import DefinitionError, HarkError, SecretUnreadable, TemplateError, UnknownName
from hark.template import render, render_value
from hypothesis import given
from hypothesis import strategies as st

TOKEN = "xoxb-1234/abc+def=="


@pytest.fixture
def key() -> bytes:
    return Fernet.generate_key()


@pytest.fixture
async def store(bus: Bus, key: bytes) -> SecretStore:
    return SecretStore(bus, key)


def test_the_key_file_is_made_once_and_only_for_its_owner(home: Path) -> None:
    """However many processes begin at once, they end up with one key, in a file of mode 0600, and no other file."""
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: secret_key(home), range(16)))
    assert len(keys) == 1
    Fernet(keys.pop())
    assert stat.S_IMODE((home / "secret.key").stat().st_mode) == 0o600
    assert [p.name for p in home.iterdir()] == ["secret.key"]
    (home / "secret.key").chmod(0o644)
    with pytest.raises(DefinitionError, match="read by others"):
        secret_key(home)
    assert secret_key(home, "given") == b"given"


async def test_a_secret_comes_back_and_lies_encrypted(bus: Bus, store: SecretStore) -> None:
    """What is set is what is got; the bucket never holds it in clear."""
    await store.set("slack_url", TOKEN)
    assert await store.get("slack_url") == TOKEN
    entry = await bus.bucket("secrets").get("slack_url")
    assert entry is not None
    assert TOKEN.encode() not in entry.value
    assert b"slack" not in entry.value
    await store.set("slack_url", "new")
    assert await store.get("slack_url") == "new"
    assert await store.names() == ["slack_url"]
    await store.delete("slack_url")
    assert await store.names() == []
    for ask in (store.get, store.delete):
        with pytest.raises(UnknownName):
            await ask("slack_url")


async def test_near_names_are_suggested(store: SecretStore) -> None:
    """A typing mistake in a name is answered with the name that was meant."""
    await store.set("slack_url", "x")
    with pytest.raises(UnknownName, match="did you mean 'slack_url'"):
        await store.get("slak_url")
    with pytest.raises(DefinitionError) as wrong:
        await store.set("slack-url", "x")
    assert "'slack_url'" in wrong.value.hint
    for name in ("", "1a", "a b", "a.b", "ü", "a" * 101):
        with pytest.raises(DefinitionError):
            await store.set(name, "x")
    for value in ("", "x" * 65_537):
        with pytest.raises(DefinitionError):
            await store.set("a", value)


async def test_another_key_reads_nothing_and_a_changed_key_reads_the_old(bus: Bus, key: bytes) -> None:
    """A wrong key is an error that says so; with the new key before the old one, everything can be read."""
    await SecretStore(bus, key).set("a", "value-of-a")
    other = Fernet.generate_key()
    with pytest.raises(SecretUnreadable, match="another key"):
        await SecretStore(bus, other).get("a")
    assert await SecretStore(bus, other + b"," + key).get("a") == "value-of-a"
    with pytest.raises(DefinitionError) as wrong:
        await SecretStore(bus, b"hunter2-is-no-key").get("a")
    assert "hunter2" not in f"{wrong.value!r} {wrong.value} {wrong.value.hint}"


async def test_stored_secrets_cannot_be_swapped(bus: Bus, store: SecretStore) -> None:
    """Whoever can write the bucket still cannot make one secret pass for another, or damage one unseen."""
    await store.set("harmless", "x")
    await store.set("harm", "y")
    bucket = bus.bucket("secrets")
    entry = await bucket.get("harmless")
    assert entry is not None
    await bucket.put("harm", entry.value)
    with pytest.raises(SecretUnreadable, match="another name"):
        await store.get("harm")
    await bucket.put("harm", b"rubbish")
    with pytest.raises(SecretUnreadable):
        await store.get("harm")


async def test_only_what_a_template_reads_is_resolved(bus: Bus, store: SecretStore) -> None:
    """A context holds the names that are read and no other, from all three places."""
    await store.set("token", TOKEN)
    await store.set("other", "other-value")
    await bus.bucket("variables").put("region", b'"eu"')
    await bus.bucket("variables").put("sizes", b"[1, 2]")
    late = LateValues(bus, store, environ={"SMTP": "smtp.example", "HARK_SECRET_KEY": "k"})
    context = await late.context(
        "slack://{{ secrets.token }}/{{ variables['region'] }}",
        ["{{ env.SMTP }}", {"a": "{{ variables.sizes }}"}],
        5,
    )
    assert {place: list(values) for place, values in context.items()} == {
        "secrets": ["token"], "variables": ["region", "sizes"], "env": ["SMTP"],
    }  # fmt: skip
    assert render("slack://{{ secrets.token }}/{{ variables['region'] }}", context) == f"slack://{TOKEN}/eu"
    assert render_value("{{ variables.sizes }}", context) == [1, 2]
    assert late.redactor.redact(f"a {TOKEN} b smtp.example eu") == "a *** b *** eu"
    with pytest.raises(UnknownName, match="secret named 'tokem'; did you mean 'token'"):
        await late.context("{{ secrets.tokem }}")
    with pytest.raises(UnknownName, match="did you mean 'region'"):
        await late.context("{{ variables.regio }}")
    with pytest.raises(UnknownName, match="did you mean 'SMTP'"):
        await late.context("{{ env.SMPT }}")
    with pytest.raises(TemplateError, match="may not read"):
        await late.context("{{ env.HARK_SECRET_KEY }}")


async def test_a_value_that_is_handed_out_while_a_line_is_written_is_hidden_from_then_on(
    bus: Bus, store: SecretStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread, which writes lines of the log, makes a redactor of what was known, and puts it there last."""
    late = LateValues(bus, store, environ={"FIRST": "first-value", "SECOND": "second-value"})
    await late.context("{{ env.FIRST }}")
    began, goes_on = threading.Event(), threading.Event()

    def slowly(values: Iterable[str]) -> Redactor:
        made = Redactor(values)
        began.set()
        assert goes_on.wait(30)
        return made

    with monkeypatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.setattr("hark.bus.secret.Redactor", slowly)
        line = pool.submit(lambda: late.redactor.redact("a first-value"))
        try:
            assert await asyncio.to_thread(began.wait, 30)
            await late.context("{{ env.SECOND }}")
        finally:
            goes_on.set()
        assert line.result() == "a ***"
    assert late.redactor.redact("a first-value second-value") == "a *** ***"


async def test_showing_the_whole_context_shows_nothing(bus: Bus, store: SecretStore) -> None:
    """``{{ secrets }}``, repr and dumps of what a template is given contain no value."""
    await store.set("items", TOKEN)
    late = LateValues(bus, store, environ={})
    context = await late.context("{{ secrets.items }}")
    assert render("{{ secrets.items }}", context) == TOKEN  # not a method of some mapping
    for shown in (
        repr(context), str(context["secrets"]), render("{{ secrets }}", context), render("{{ secrets | tojson }}", context),
        f"{context['secrets']['items']!r}", repr(store), repr(late.redactor),
    ):  # fmt: skip
        assert TOKEN not in shown
    assert "***" in repr(SecretText("x"))


@given(
    st.text(min_size=4, max_size=40).filter(lambda s: len(s.strip()) >= 4),
    st.text(max_size=20),
    st.text(max_size=20),
)
def test_no_form_of_a_secret_survives(value: str, before: str, after: str) -> None:
    """As it is, URL-encoded in any way, or inside JSON: no text keeps it."""
    redactor = Redactor([value])
    secret = value.strip()
    for form in (
        secret,
        quote(secret),
        quote(secret, safe=""),
        quote_plus(secret),
        json.dumps(secret, ensure_ascii=False)[1:-1],
    ):
        shown = redactor.redact(f"{before}\x00{form}\x00{after}")
        assert form not in shown.replace("***", "\x01") or form in before or form in after


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("posting to slack://T000/B000/XXXX failed", "posting to slack://*** failed"),
        ("mailto://user:pass@mail.example?to=a@b.c, then", "mailto://***, then"),
        ("GET https://user:pass@example.com/x", "GET https://***@example.com/x"),
        ("see https://example.com/docs?x=1", "see https://example.com/docs?x=1"),
        ("nats://admin:pw@10.0.0.1:4222", "nats://***@10.0.0.1:4222"),
        ("'slack+http://host:1/services/T/B/X'", "'slack+http://***'"),
        ("nothing here", "nothing here"),
    ],
)
def test_urls_lose_what_they_carry(text: str, shown: str) -> None:
    """Of an Apprise URL only the scheme is shown, of a web address all but its credentials."""
    assert Redactor().redact(text) == shown


def test_parts_of_a_secret_url_are_secrets_too() -> None:
    """A library that prints one path segment or the password of a secret URL gives nothing away."""
    redactor = Redactor(
        [
            "mailto://bob:p4ssw%21rd@mail.example.com/x?token=abcdef99",
            "slack://TokenAAAAA/TokenBBBBB/cccccccccc",
        ]
    )
    text = "bob p4ssw!rd p4ssw%21rd mail.example.com abcdef99 TokenAAAAA TokenBBBBB cccccccccc"
    assert redactor.redact(text) == "*** *** *** mail.example.com *** *** *** ***"
    assert (
        Redactor(["-----BEGIN KEY-----\nMIIEabcdefgh\n-----END KEY-----"]).redact("line MIIEabcdefgh!")
        == "line ***!"
    )
    assert Redactor(["ab"]).redact("ab about (ab)") == "*** about (***)"
    assert redactor.redact_value({"a": ["abcdef99", 1, None]}) == {"a": ["***", 1, None]}
    assert [shown_url(u) for u in ("slack://a/b", "no url", "bad scheme://x")] == [
        "slack://***",
        "***",
        "***",
    ]


async def test_errors_of_late_values_name_no_value(bus: Bus, store: SecretStore) -> None:
    """A template that fails while holding a secret says what failed without the secret."""
    await store.set("token", TOKEN)
    late = LateValues(bus, store, environ={})
    for template in (
        "{{ secrets.token.x.y }}",
        "{{ secrets.token + 1 }}",
        "{{ secrets.token | round }}",
        "{{ secrets.token ** 2 }}",
    ):
        context = await late.context(template)
        with pytest.raises(HarkError) as failed:
            render(template, context)
        assert TOKEN not in f"{failed.value} {failed.value!r}"
