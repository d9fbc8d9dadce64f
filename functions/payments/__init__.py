"""The worker that does what the outbox to the payment provider holds."""
