"""Admission: limits and budgets of all scopes, checked and reserved in one atomic step."""
