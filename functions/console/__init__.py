"""The management API: organizations, keys, catalog, endpoints, usage, receipts and previews over HTTP."""
