"""Online endpoints: a stable URL before up to 20 deployments of the user's own."""
