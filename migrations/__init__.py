"""Farebox: migrations."""
