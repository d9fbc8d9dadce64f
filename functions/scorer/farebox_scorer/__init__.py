"""Serves a user's scoring script over HTTP: runs in the user's own environment, so it needs nothing of Farebox."""

VERSION = "1"
