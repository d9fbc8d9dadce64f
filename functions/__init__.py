"""Farebox: functions."""
