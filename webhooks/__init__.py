"""Farebox: events for customers, delivered to their webhooks."""
