"""Farebox: Python client and command line."""
