"""Farebox: manifests."""
