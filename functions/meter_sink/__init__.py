"""Usage events in, usage rows out."""
