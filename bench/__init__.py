"""Measurements: never part of the tests, always with the machine named. `docs/performance.md` explains them."""
