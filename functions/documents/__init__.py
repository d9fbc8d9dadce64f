"""Invoices on paper and on a page. Sizes are millimetres; amounts come as texts (billing/documents)."""
