"""The platform's version, where a process can read it without looking at its installation."""

VERSION = "0.1.0"
