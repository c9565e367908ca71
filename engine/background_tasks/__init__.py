"""``task.delay``: asking for a task run that any task worker may take, its future, what the log says of it, and what was given up.
The worker that serves them is ``task_worker.py``, one folder up.
"""
