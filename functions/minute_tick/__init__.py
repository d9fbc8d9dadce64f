"""Endpoint minutes and the closing of usage minutes."""
