"""What becomes of a run, from its begin to its end. ``flow_life.py`` and ``task_life.py`` say it step by step, ``flow_engine.py`` and
``task_engine.py`` drive it in sync and async code; beside them waits for retries, tasks as transactions, hooks that are owed,
and ``tracking.py``, which has it all written into the log.
"""
