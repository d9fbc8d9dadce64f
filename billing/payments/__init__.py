"""What the payment provider gets from us and tells us: an outbox, its steps, and events of the provider."""
