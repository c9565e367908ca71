"""The page behind the link of a question: opening it answers nothing, its button answers once."""

from __future__ import annotations

from datetime import UTC, datetime

from hark.automations.acting.approval import Approvals
from hark.automations.acting.perform import Firing
from hark.bus import Event
from hark.vocabulary import JsonValue

from tests.server.conftest import Start


async def test_a_link_shows_the_question_and_its_button_answers_it(start: Start) -> None:
    """Looked at twice, answered once, and over then; no access key is asked for, the link is one.

    Its rule is gone by then: what was asked is done all the same.
    """
    async with start() as (service, http):
        cause = Event(
            type="automation.triggered",
            source="/t",
            subject="automation/r",
            data={"key": "a", "automation": {"name": "r"}},
        )
        actions: list[JsonValue] = [{"emit": "it.was", "data": {"key": "{{ key }}"}}]
        id_ = "0199-x/0"
        await Approvals(service.bus).open(
            id_, Firing.of(cause, 1), title="Restart <a>?", body="It is & down.", wait_s=60,
            branches={"yes": actions, "no": [], "expired": []},
        )  # fmt: skip
        assert (await http.get("/api/automations")).json()["items"] == []
        page = "/approve/" + service.approval_links.token(id_)
        for _ in range(2):
            shown = await http.get(page + "?answer=yes")
            assert (shown.status_code, "Restart &lt;a&gt;?" in shown.text) == (200, True)
        (listed,) = (await http.get("/api/approvals")).json()["items"]
        assert (listed["state"], listed["id"]) == ("open", id_)
        assert (await http.post(page, data={"answer": "perhaps"})).status_code == 400
        assert "Thank you: yes" in (await http.post(page, data={"answer": "yes"})).text
        assert "answered yes" in (await http.post(page, data={"answer": "no"})).text
        assert "It was answered: yes" in (await http.get(page)).text
        assert (await http.get("/approve/nonsense")).status_code == 403
        again = await http.post(f"/api/approvals/{id_}", json={"answer": "no"})
        assert again.status_code == 409
        since = datetime(2020, 1, 1, tzinfo=UTC)
        async with service.bus.log.follow(["hark.ev.it.was"], since=since) as batches:
            async for batch in batches:
                if batch.records:
                    assert batch.records[0].event.data == {"key": "a"}
                    break
