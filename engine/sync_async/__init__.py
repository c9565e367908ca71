"""Sync and async code by one text: operations that are awaited in the one and plain in the other (``either.py``), sequences
of steps that a sync or an async driver does (``steps.py``). And sync code beside a loop: in threads, with a session where it
holds the loop of another, stopped where it takes too long.
"""
