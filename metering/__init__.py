"""Usage events, the durable journal, the minute clock, usage queries."""
