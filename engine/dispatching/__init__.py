"""Which run starts, when, and on which worker. ``dispatch.py`` decides, as a pure fold of the log; ``leader.py`` carries out;
``control.py`` is what people and rules may ask; ``deployment.py`` and ``pool.py`` are what they define, and ``ticket.py`` is what a
worker is handed.
"""
