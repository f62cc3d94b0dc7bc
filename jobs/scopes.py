"""What an API key may do. Apart from `keys`, for commands that need no database."""

from enum import StrEnum


class Scope(StrEnum):
    """A permission; `admin` is every permission, and the jobs of every key."""

    JOBS_READ = "jobs:read"
    JOBS_WRITE = "jobs:write"
    MODELS_WRITE = "models:write"
    ADMIN = "admin"
