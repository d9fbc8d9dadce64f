"""The command line `farebox`."""
