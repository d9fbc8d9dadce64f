"""Who may do what: organizations, projects, keys."""
