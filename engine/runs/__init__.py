"""Runs as the log tells them. Begin with ``run.py``: the request for a flow run, and the fold of its transitions. ``run_log.py`` and
``task_events.py`` are the only writers of transitions; ``hook_log.py`` tells of hooks, ``replay.py`` what a run already has.
"""
