"""``hark runs cancel``: of one, of several, and of all that filters find."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .conftest import Run, Serve


async def test_many_runs_are_cancelled_by_what_they_have_in_common(
    serve: Serve, hark: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are shown first, and nothing is done without a yes; a run that is over, or of another kind, is left alone."""
    async with serve() as service:

        async def asked(name: str, *words: str) -> str:
            run = await hark("deployments", "run", name, *words, "--json")
            return str(json.loads(run.stdout)["id"])

        async def cancelled(*words: str) -> Any:
            result = await hark("runs", "cancel", *words, "--json")
            assert result.exit_code == 0, result.output
            return json.loads(result.stdout)

        over = await asked("etl", "--tag", "backlog", "--wait")
        backlog = [await asked("etl", "--delay", "1h", "--tag", "backlog") for _ in range(3)]
        others = [await asked("etl", "--delay", "1h"), await asked("broken", "--delay", "1h")]
        await service.parts.running("projector").caught_up(await service.bus.log.head(), timeout_s=60)

        planned = await hark("runs", "cancel", "--tag", "backlog")
        assert "3 runs to cancel" in planned.stdout
        assert over not in planned.stdout
        assert "add --yes" in planned.stderr
        assert [run["id"] for run in await cancelled("--tag", "backlog")] == backlog
        shown = await hark("runs", "show", backlog[0], "--json")
        assert json.loads(shown.stdout)["state_name"] == "Scheduled"

        too_many = await hark("runs", "cancel", "--deployment", "etl", "--limit", "2", "--yes")
        assert too_many.exit_code == 1
        assert "more than 2 runs match; nothing has been cancelled" in too_many.stderr
        monkeypatch.setattr("hark.cli.cancel_runs._SHOWN", 2)
        monkeypatch.setattr("hark.cli.cancel_runs._PAGE", 2)
        done = await hark("runs", "cancel", "--tag", "backlog", "--reason", "wrong day", "-y")
        assert done.exit_code == 0, done.output
        assert "… 1 more" in done.stdout
        assert done.stdout.endswith("3 runs asked to stop: 3 Cancelled\n")
        shown = await hark("runs", "show", backlog[0], "--json")
        assert json.loads(shown.stdout)["state_message"] == "wrong day"

        [one] = await cancelled("--flow", "broken", "--state", "scheduled", "--yes")
        assert (one["id"], one["state_type"]) == (others[1], "CANCELLED")
        await service.parts.running("projector").caught_up(await service.bus.log.head(), timeout_s=60)
        assert (await hark("runs", "cancel", "--deployment", "broken", "-y")).stdout == "no runs to cancel\n"
        assert await cancelled("--state", "completed", "--yes") == []
        assert (await cancelled(others[0][:-1]))["state_type"] == "CANCELLED"
        several = await hark("runs", "cancel", *others)
        assert several.stdout.splitlines() == [f"{run_id}  Cancelled" for run_id in others]


@pytest.mark.parametrize("words", [(), ("0123456789", "--tag", "a"), ("--yes",)])
async def test_what_is_to_be_cancelled_has_to_be_said(hark: Run, words: tuple[str, ...]) -> None:
    """By ids or by filters: without either, everything there is would stop."""
    wrong = await hark("runs", "cancel", *words)
    assert wrong.exit_code == 2
    assert "say which runs" in wrong.stderr
