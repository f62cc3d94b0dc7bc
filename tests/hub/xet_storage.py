"""The storage that the Hub's client sends large files to by default: chunks in xorbs, files as lists of chunks.

Knows of the Xet formats (https://huggingface.co/docs/xet) what it takes to put uploaded files together again:
chunks that are stored uncompressed, as the client stores random bytes.
"""

import struct

_CHUNK_HEADER = 8
_ENTRY = 48
_BOOKEND = b"\xff" * 32
_XORB_FOOTER = b"XETBLOB"
_WITH_VERIFICATION, _WITH_METADATA = 1 << 31, 1 << 30


class XetStorage:
    """Chunks by the hash of the xorb that holds them."""

    def __init__(self) -> None:
        self._xorbs: dict[bytes, list[bytes]] = {}

    def put_xorb(self, name: str, body: bytes) -> None:
        """Keep the chunks of the xorb; `name` is its hash as in the address."""
        chunks = []
        at = 0
        while at < len(body) and not body.startswith(_XORB_FOOTER, at):
            size = int.from_bytes(body[at + 1 : at + 4], "little")
            scheme = body[at + 4]
            assert scheme == 0, f"the client compressed a chunk (scheme {scheme}): give it random bytes"
            chunks.append(body[at + _CHUNK_HEADER : at + _CHUNK_HEADER + size])
            at += _CHUNK_HEADER + size
        self._xorbs[_hash(name)] = chunks

    def files(self, shard: bytes) -> list[bytes]:
        """The contents of the files that a shard describes."""
        contents = []
        at = _ENTRY  # behind the shard's own header
        while shard[at : at + 32] != _BOOKEND:
            flags, segments = struct.unpack_from("<II", shard, at + 32)
            at += _ENTRY
            content = b""
            for segment in range(segments):
                xorb, _, _, first, end = struct.unpack_from("<32sIIII", shard, at + segment * _ENTRY)
                content += b"".join(self._xorbs[xorb][first:end])
            contents.append(content)
            at += segments * _ENTRY * (2 if flags & _WITH_VERIFICATION else 1)
            at += _ENTRY if flags & _WITH_METADATA else 0
        return contents


def _hash(name: str) -> bytes:
    """A hash from its address, which writes each 8 bytes as a little-endian number."""
    return b"".join(bytes.fromhex(name[start : start + 16])[::-1] for start in range(0, 64, 16))
