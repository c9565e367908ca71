"""Named limits, so many at once or so many per time: what they are (``limit.py``), slots of them over the broker (``slots.py``), and
those that tasks take by their tags.
"""
