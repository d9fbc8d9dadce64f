"""`python -m farebox`."""

from farebox.cli.main import main

main()
