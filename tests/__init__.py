"""Tests. Shared helpers (the mock engine) are imported as `tests.<module>`."""
