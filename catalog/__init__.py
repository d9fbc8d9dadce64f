"""Farebox: catalog."""
