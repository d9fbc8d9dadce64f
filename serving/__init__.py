"""Farebox: serving."""
