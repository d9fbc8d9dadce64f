"""The invoicer: months that are over become invoices."""
