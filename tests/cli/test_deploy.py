"""`hark deploy`, against a real service."""

from __future__ import annotations

from tests.cli.conftest import Run, Serve, as_json


async def test_a_flow_is_deployed_by_command(serve: Serve, hark: Run) -> None:
    """Its options are those of `flow.deploy()`; what makes no sense is refused before anything is stored."""
    async with serve() as service:
        words = ("deploy", "flows.py:etl", "--name", "nightly", "--cron", "0 6 * * *", "--interval", "6h")
        more = ("--timezone", "Europe/Berlin", "-p", "n=3", "--tag", "prod", "--concurrency-limit", "1")
        made = await hark(*words, *more, "--on-conflict", "skip", "--description", "Orders.", "--paused")
        assert made.exit_code == 0, made.output
        assert "`hark deployments run nightly`" in made.stdout
        await service.parts.running("projector").caught_up(await service.bus.log.head(), timeout_s=60)
        shown = as_json(await hark("deployments", "show", "nightly", "--json"))
        assert {key: shown[key] for key in ("flow", "parameters", "tags", "pool", "paused", "description")} == {
            "flow": "flows.py:etl", "parameters": {"n": 3}, "tags": ["prod"], "pool": "default", "paused": True,
            "description": "Orders.",
        }  # fmt: skip
        assert (shown["concurrency"]["limit"], shown["concurrency"]["on_conflict"]) == (1, "skip")
        listed = as_json(await hark("schedules", "ls", "--json"))
        of_it = [str(one) for one in listed if one["deployment"] == "nightly"]
        assert ["Europe/Berlin" in one for one in of_it] == [True, True]
        for wrong, said in (
            (("flows.py:etl", "--cron", "at six"), "cron"), (("flows.py:elt",), "did you mean 'etl'?"),
            (("flows.py:etl", "--timezone", "UTC"), "give --cron"), (("flows.py:etl", "-p", "x"), "is not NAME=VALUE"),
            (("flows.py:etl", "--on-conflict", "skip"), "--concurrency-limit"),
        ):  # fmt: skip
            refused = await hark("deploy", *wrong, "--name", "wrong")
            assert (refused.exit_code, refused.stdout) == (2, ""), wrong
            assert said in " ".join(refused.stderr.replace("│", " ").split()), (wrong, refused.stderr)
        assert (await hark("deployments", "show", "wrong")).exit_code == 2
