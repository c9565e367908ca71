"""Whether an event is meant: paths into it, the conditions of ``where`` and their comparisons, ``if`` in CEL, and the matcher,
which finds the patterns an event satisfies at a cost that does not grow with their number. Pure.
"""
