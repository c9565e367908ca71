"""Hark."""
