"""Measurements: never part of the tests, always with the machine named."""
