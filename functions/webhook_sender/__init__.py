"""Delivers events to customers' webhooks."""
