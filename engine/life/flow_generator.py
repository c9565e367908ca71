"""Living the life of a flow that is a generator: the values passed on as they come, and what is sent passed in.

What has been yielded cannot be taken back: a generator that is tried again yields from its beginning, to the same
reader. A reader that has had enough ends the run well. A time limit counts the time spent in the generator, not that of
its reader.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Generator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from ..sync_async.steps import Turns
from ..sync_async.timeouts import left_of, within, within_async
from .flow_driver import do_step, do_step_async
from .flow_life import Body, FlowEngine

if TYPE_CHECKING:
    from ...bus.session import Session

__all__ = ["drive_generator", "drive_generator_async"]


def drive_generator(engine: FlowEngine, session: Session | None) -> Generator[Any, Any, Any]:
    """Run a flow that is a generator, in the thread of its reader."""
    turns = Turns(engine.life())
    enough: GeneratorExit | None = None
    with ExitStack() as stack:
        stack.callback(engine.close_side)
        stack.enter_context(engine.context.runner.opened())
        while not turns.is_over:
            try:
                for step in turns:
                    try:
                        if not isinstance(step, Body):
                            turns.answer = do_step(engine, step, session)
                            continue
                        with engine.entering():
                            generator = engine.call_function()
                        sent, step.spent_s = None, 0.0
                        while True:
                            began = time.monotonic()
                            left_s = left_of(engine.flow.timeout_seconds, began - step.spent_s)
                            with (
                                engine.entering(),
                                within(left_s, engine.limit_text, of_s=engine.flow.timeout_seconds),
                            ):
                                try:
                                    item = generator.send(sent)
                                except StopIteration as end:
                                    turns.answer = end.value
                                    break
                                finally:
                                    step.spent_s += time.monotonic() - began
                            engine.has_yielded = engine.context.awaits_reader = True
                            try:
                                sent = yield item
                            except GeneratorExit as exc:
                                enough, engine.is_read_no_more = exc, True
                                with engine.entering():
                                    generator.close()
                                break
                            finally:
                                engine.context.awaits_reader = False
                    except BaseException as exc:
                        turns.error = exc
            except BaseException as exc:
                if turns.is_over:
                    raise
                turns.error = exc  # interrupted between two steps
        if enough is not None:
            raise enough
        return turns.result.result()


async def drive_generator_async(engine: FlowEngine, session: Session | None) -> AsyncGenerator[Any, Any]:
    """Run a flow that is an async generator, in the loop of its reader."""
    turns = Turns(engine.life())
    enough: GeneratorExit | None = None
    with engine.context.runner.opened():
        for step in turns:
            try:
                if not isinstance(step, Body):
                    turns.answer = await do_step_async(engine, step, session)
                    continue
                with engine.entering():
                    generator = engine.call_function()
                sent, step.spent_s = None, 0.0
                while True:
                    began = time.monotonic()
                    left_s = left_of(engine.flow.timeout_seconds, began - step.spent_s)
                    with engine.entering():
                        async with within_async(left_s, engine.limit_text, of_s=engine.flow.timeout_seconds):
                            try:
                                item = await generator.asend(sent)
                            except StopAsyncIteration:
                                break
                            finally:
                                step.spent_s += time.monotonic() - began
                    engine.has_yielded = engine.context.awaits_reader = True
                    try:
                        sent = yield item
                    except GeneratorExit as exc:
                        enough, engine.is_read_no_more = exc, True
                        with engine.entering():
                            await generator.aclose()
                        break
                    finally:
                        engine.context.awaits_reader = False
            except BaseException as exc:
                turns.error = exc
        if enough is not None:
            raise enough
        await turns.result.aresult()
