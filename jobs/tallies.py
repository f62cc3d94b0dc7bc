"""Counts that outlive the processes that count, for `/metrics`: kept in the database beside what they count.

They are written in the transaction of the change itself, so that a change that is repeated or refused counts once or
not at all, and they stay when jobs are deleted.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from jobs.tables import Tally

ATTEMPTS_STARTED, ATTEMPTS_ENDED = "attempts_started", "attempts_ended"
STAGE_SECONDS, PEAK_MEMORY_BYTES = "stage_seconds", "peak_memory_bytes"

BUCKETS: dict[str, tuple[float, ...]] = {
    STAGE_SECONDS: (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600, math.inf),
    PEAK_MEMORY_BYTES: (*(2**power * 2**30 for power in range(9)), math.inf),
}
"""The upper bounds of each histogram's buckets."""

_COUNT, _SUM = "", "sum"

Key = tuple[str, str, str]
"""Name, label, and for a histogram the bucket's upper bound or `sum`."""


@dataclass(frozen=True)
class Histogram:
    """buckets: how many values were at most each upper bound. sum: of all values."""

    buckets: dict[float, float]
    sum: float


def counted(name: str, label: str = "") -> Counter[Key]:
    """One more of what is counted."""
    return Counter({(name, label, _COUNT): 1})


def observed(name: str, value: float, label: str = "") -> Counter[Key]:
    """One more value of a histogram."""
    tally: Counter[Key] = Counter({(name, label, _bound(most)): 1 for most in BUCKETS[name] if value <= most})
    tally[name, label, _SUM] = value  # type: ignore[assignment]  # a counter holds floats as well
    return tally


def add(session: Session, *tallies: Counter[Key]) -> None:
    """Add to what the database holds; the last thing of a transaction, in one order, so that two never deadlock."""
    total = sum(tallies, Counter[Key]())
    if not total:
        return
    rows = [
        {"name": name, "label": label, "part": part, "value": value}
        for (name, label, part), value in sorted(total.items())
    ]
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    insert = dialect.insert(Tally).values(rows)
    session.execute(
        insert.on_conflict_do_update(
            index_elements=[Tally.name, Tally.label, Tally.part], set_={"value": Tally.value + insert.excluded.value}
        )
    )


def counters(session: Session, name: str) -> dict[str, float]:
    """What was counted, by label."""
    return {label: value for (label, _), value in _read(session, name).items()}


def histograms(session: Session, name: str) -> dict[str, Histogram]:
    """The histograms by label."""
    found = _read(session, name)
    return {
        label: Histogram(
            {most: found.get((label, _bound(most)), 0.0) for most in BUCKETS[name]}, found.get((label, _SUM), 0.0)
        )
        for label in sorted({label for label, _ in found})
    }


def _read(session: Session, name: str) -> Mapping[tuple[str, str], float]:
    rows: Iterable[Tally] = session.scalars(select(Tally).where(Tally.name == name))
    return {(row.label, row.part): row.value for row in rows}


def _bound(most: float) -> str:
    return f"{most:g}"
