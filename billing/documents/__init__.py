"""What stands on an invoice document, and the lines as CSV. Pages are laid out in functions/documents."""
