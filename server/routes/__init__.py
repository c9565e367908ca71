"""The HTTP routes, one file per idea; ``app.py`` puts them together."""
