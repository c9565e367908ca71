"""The read model: projector and queries over SQLite, folded from the log."""
