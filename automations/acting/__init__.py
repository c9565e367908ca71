"""Carrying out what rules have decided, each action once, whatever dies in between: the outbox and its claims, what performs each
kind of action (``perform.py``), questions to people, sinks, and the dead letters of what was given up.
"""
