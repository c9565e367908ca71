"""Noticing facts: schedules and webhooks become events and requests for runs."""
