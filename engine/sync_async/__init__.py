"""Sync and async code by one text: operations that are awaited in the one and plain in the other (``either.py``), sequences
of steps that a sync or an async driver does (``steps.py``), and a session for code that holds the loop of another.
"""
