"""Alembic migrations, shipped with the code so that the embedded service can bring its own database up to date."""
