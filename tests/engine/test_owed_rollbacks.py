"""What of a plain call is rolled back by others, by what the log says of it. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

import orjson
from hark.bus import Recorded
from hark.engine.life.owed_rollbacks import IN_SUBFLOW, Finished
from hark.engine.runs.run import FlowRun, RunRequest

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RUN = FlowRun.requested(RunRequest(flow_name="f"), now=NOW)


class Told:
    """The events of a run, folded as they are told."""

    def __init__(self) -> None:
        self.finished = Finished(RUN)
        self._seq = 0

    def note(self, type_: str, call: str, **data: object) -> None:
        self._seq += 1
        event = {"specversion": "1.0", "id": str(self._seq), "source": "/s", "type": type_}
        about = {"run": {"id": call}, "call": call, **data}
        self.finished.add(Recorded(self._seq, "s", NOW, orjson.dumps({**event, "data": about})))

    def done(
        self,
        call: str,
        *,
        block: str | None = None,
        within: str = "",
        undo: bool = True,
        name: str = "Completed",
    ) -> None:
        """A task has completed; in a block, or in a task that is part of one, it is part of a transaction."""
        more: dict[str, object] = {"within": within} if within else {}
        if block is not None or within:
            more["transaction"] = {}
            if undo:
                more["undo"] = {"task": "m:t", **({"block": block, "run": RUN.id} if block else {})}
        self.note("task-run.completed", call, state={"type": "COMPLETED", "name": name}, **more)

    def left(self) -> list[str]:
        return [one.call.key for one in self.finished.left()]


def test_what_is_part_of_a_block_is_undone_unless_that_was_committed() -> None:
    """A task without hooks has nothing to undo, and one that was rolled back is not once more."""
    told = Told()
    told.done("a", block="b1")
    told.done("b", block="b2")
    told.done("c", block="b2", undo=False)
    told.done("d", block="b2")
    told.done("d", block="b2", name="RolledBack")
    told.done("e")
    assert told.left() == ["a", "b"]
    told.note("hark.transaction.committed", "b1")
    assert told.left() == ["b"]
    told.done("d", block="b2")
    assert told.left() == ["b", "d"]
    told.note(IN_SUBFLOW, "sub")
    assert list(told.finished.subflows) == ["sub"]


def test_what_a_task_has_called_is_committed_with_it() -> None:
    """A task that is part of nothing has committed once it is recorded; until then, and in an open block, all is undone."""
    told = Told()
    told.done("alone.1", within="alone")
    told.done("part.1", block="b", within="part")
    told.done("killed.1", within="killed")
    assert told.left() == ["alone.1", "part.1", "killed.1"]
    told.done("alone")
    told.done("part", block="b", undo=False)
    assert told.left() == ["part.1", "killed.1"]
    told.note("hark.transaction.committed", "b")
    assert told.left() == ["killed.1"]
