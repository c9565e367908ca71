"""Where the author's code is, and finding it: entrypoints, the loader, what a function takes by its text, and under which name a
flow or task can be found again by a process that does not have it (``reference.py``, ``named_code.py``).
"""
