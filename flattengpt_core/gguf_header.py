"""Reads the header of a GGUF file without trusting a length in it: each is held against the file's own size.

For files that were uploaded. The gguf library's reader makes several objects of each array element, as many as the
file says there are, and does not notice the file's end.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MAX_ELEMENTS = 4_000_000
"""Strings and tensors in all; a vocabulary of 256 thousand tokens and its merges have less than a million."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4
_ALIGNMENT = "general.alignment"

Value = int | float | bool | str


@dataclass(frozen=True)
class GgufHeader:
    """entries: the metadata but for arrays. parameters: the elements of all tensors."""

    entries: dict[str, Value]
    parameters: int


def read_header(path: Path) -> GgufHeader:
    """The header of a little-endian GGUF file.

    Raises:
        ValueError: it is none, is cut off, or has a length that leads out of the file.
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        return _Reader(stream, path.stat().st_size).header()


class _Reader:
    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._left, self._size = stream, size, size
        self._elements = 0

    def header(self) -> GgufHeader:
        if self._bytes(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version = self._number("I")
        if version not in (2, 3):
            raise ValueError(f"its version is {version}, not 2 or 3")
        tensors, count = self._count("Q"), self._count("Q")
        entries: dict[str, Value] = {}
        for _ in range(count):
            key, value = self._string(), self._value(self._number("I"))
            if value is not None:
                entries[key] = value
        sizes = [self._tensor() for _ in range(tensors)]
        self._check_data(entries.get(_ALIGNMENT, 32), [end for _, end in sizes])
        return GgufHeader(entries, sum(elements for elements, _ in sizes))

    def _value(self, kind: int) -> Value | None:
        """A value; None for an array, which is passed over."""
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._scalar(kind)
        of, length = self._number("I"), self._number("Q")
        if of == _STRING:
            for _ in range(self._counted(length)):
                self._skip(self._number("Q"))
        elif of in _SCALARS:
            self._counted(length)
            self._skip(length * struct.calcsize(_SCALARS[of]))
        else:
            raise ValueError(f"an array holds values of type {of}")
        return None

    def _tensor(self) -> tuple[int, int]:
        """How many elements the tensor has, and where its data ends, after the header."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType  # slow to import

        name, dimensions = self._string(), self._number("I")
        if dimensions > _MAX_DIMENSIONS:
            raise ValueError(f"the tensor {name!r} has {dimensions} dimensions")
        elements = math.prod(self._number("Q") for _ in range(dimensions))
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(self._number("I"))]
        return elements, self._number("Q") + elements // block * size

    def _check_data(self, alignment: Value, ends: list[int]) -> None:
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"its alignment is {alignment!r}")
        start = -(-(self._size - self._left) // alignment) * alignment
        if ends and start + max(ends) > self._size:
            raise ValueError(f"its tensors need {start + max(ends)} bytes, and it has {self._size}")

    def _scalar(self, kind: int) -> Value:
        if kind not in _SCALARS:
            raise ValueError(f"a value has the type {kind}")
        value: Value = struct.unpack(f"<{_SCALARS[kind]}", self._bytes(struct.calcsize(_SCALARS[kind])))[0]
        return value

    def _number(self, form: str) -> int:
        return int(struct.unpack(f"<{form}", self._bytes(struct.calcsize(form)))[0])

    def _count(self, form: str) -> int:
        return self._counted(self._number(form))

    def _counted(self, count: int) -> int:
        self._elements += count
        if self._elements > MAX_ELEMENTS:
            raise ValueError(f"it has more than {MAX_ELEMENTS} entries")
        return count

    def _string(self) -> str:
        return self._bytes(self._number("Q")).decode("utf-8")

    def _bytes(self, count: int) -> bytes:
        self._take(count)
        found = self._stream.read(count)
        if len(found) < count:
            raise ValueError("it is cut off")
        return found

    def _skip(self, count: int) -> None:
        self._take(count)
        self._stream.seek(count, 1)

    def _take(self, count: int) -> None:
        if count > self._left:
            raise ValueError("it is cut off, or has a length that leads out of it")
        self._left -= count
