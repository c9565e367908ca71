"""Telling people: channels, messages, delivery."""
