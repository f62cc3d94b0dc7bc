"""What a benchmark claims."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """A figure and the bound it must keep."""

    what: str
    value: float
    bound: str
    holds: bool
