"""Schema migrations (Alembic): expand first, contract a release later."""
