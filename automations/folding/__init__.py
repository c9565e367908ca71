"""The rule engine. ``fold.py`` decides, over the log and nothing else; ``engine.py`` follows the log, feeds it, and stores what is
decided; ``snapshot.py`` and ``checkpoint.py`` put down how far it has come.
"""
