"""The two flows the demo's rules start."""

from __future__ import annotations

from hark import flow, get_run_logger, task


@task
async def look_at(file: str) -> int:
    """Return how long a file's name is, which stands here for a check that takes some work."""
    return len(file)


@flow
async def check_commit(repository: str, commit: str, files: list[str]) -> int:
    """Look at every file of a commit."""
    get_run_logger().info("checking %s of %s", commit[:7], repository)
    return sum([await look_at(file) for file in files])


@task
def find_culprit(workflow: str, number: int) -> str:
    """Always fails: the log it wants to read is gone."""
    raise LookupError(f"no log of {workflow} #{number}")


@flow
def triage_build(workflow: str, number: int) -> str:
    """Find out why a build failed; a sync flow, run in a warm process of its own."""
    return find_culprit(workflow, number)
