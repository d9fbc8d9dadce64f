"""Farebox: billing."""
