"""The Hub token that a client sends with its request: how the database keeps it until the job has ended.

Sealed, for the worker that runs the job; and as a digest, by which a repeated request is known. Knows nothing of the
Hub.
"""

import hashlib
import hmac
import re
import secrets

from pydantic import SecretStr

from jobs.sealing import Sealer

HEADER = "Hub-Token"
MAX_LENGTH = 512

_SALT_BYTES = 16  # BLAKE2b's own size
_FITS_A_HEADER = re.compile(rf"[!-~]{{1,{MAX_LENGTH}}}")


class HubToken:
    """One request's token, and what seals it."""

    def __init__(self, secret: SecretStr, sealer: Sealer) -> None:
        self._secret, self._sealer = secret, sealer

    def seal(self) -> str:
        """What only holders of the keys can open. Raises SealingUnavailable."""
        return self._sealer.seal(self._secret)

    def digest(self) -> str:
        """What tells this token from others and is no token; another one each time."""
        return _digest(self._secret, secrets.token_bytes(_SALT_BYTES))

    def has(self, digest: str) -> bool:
        """Whether the digest is of this token."""
        salt = bytes.fromhex(digest.partition("$")[0])
        return hmac.compare_digest(_digest(self._secret, salt), digest)


def check(token: SecretStr) -> SecretStr:
    """The token, if it can be one. Raises ValueError, whose text quotes nothing of it."""
    if not _FITS_A_HEADER.fullmatch(token.get_secret_value()):
        raise ValueError(f"give a token of at most {MAX_LENGTH} ASCII characters, without spaces")
    return token


def _digest(token: SecretStr, salt: bytes) -> str:
    return f"{salt.hex()}${hashlib.blake2b(token.get_secret_value().encode(), digest_size=32, salt=salt).hexdigest()}"
