"""One folder per deployable process; composition, and nothing that another layer needs."""
