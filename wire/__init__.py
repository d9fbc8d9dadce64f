"""Farebox: wire."""
