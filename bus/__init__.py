"""Carrying facts: the event envelope, subjects, the log, publisher, consumers, buckets, the embedded broker."""
