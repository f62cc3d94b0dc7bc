"""Byte ranges of RFC 9110, for files of any store. Knows nothing of jobs."""

import re
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


@dataclass(frozen=True)
class ByteRange:
    """The bytes from `start` up to but without `stop`."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        """How many bytes."""
        return self.stop - self.start


def asked_range(headers: Headers, *, size: int, etag: str) -> ByteRange | None:
    """The range that a request asks for; None for the whole file, also where RFC 9110 has a range ignored.

    That is a range that is malformed, one of several, or meant for another version of the file (If-Range).

    Raises:
        HTTPException: 416, the range has no byte of the file.
    """
    match = _RANGE.fullmatch(headers.get("range", "").strip())
    if match is None or headers.get("if-range", etag) != etag or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:  # the last so many bytes
        wanted = ByteRange(max(size - int(last), 0), size)
    else:
        wanted = ByteRange(int(first), min(int(last) + 1, size) if last else size)
        if last and int(last) < int(first):
            return None
    if wanted.length <= 0:
        raise HTTPException(416, f"The file has {size} bytes.", headers={"Content-Range": f"bytes */{size}"})
    return wanted
