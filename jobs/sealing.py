"""Seals secrets that the database has to keep: they can be read again only with a key that is elsewhere.

The keys are Fernet's. The first of FLATTENGPT_SECRET_KEYS seals, all of them open. A service that is embedded makes one
in its data folder if there is none. Knows nothing of what is sealed.
"""

import os
import tempfile
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from pydantic import SecretStr

from jobs.errors import SealingUnavailable
from jobs.settings import Settings

KEY_FILE = "secret.key"


class Sealer:
    """Seals and opens with the keys of the settings; a key file is made when it is first needed.

    Raises:
        SealingUnavailable: one of the keys is none.
    """

    def __init__(self, settings: Settings) -> None:
        self._configured = _fernets(settings.secret_keys)
        self._file = settings.data_dir / KEY_FILE if settings.embedded else None

    @property
    def available(self) -> bool:
        """Whether there is a key, or a place to make one."""
        return bool(self._configured) or self._file is not None

    def check(self) -> None:
        """Raises SealingUnavailable where secrets cannot be kept."""
        if not self.available:
            raise SealingUnavailable(
                "This service has no key to keep secrets with: its operator has to set FLATTENGPT_SECRET_KEYS, the "
                "same for the API, `flattengpt sweep` and the workers."
            )

    def seal(self, secret: SecretStr) -> str:
        """The secret, unreadable without the keys. Raises SealingUnavailable."""
        return self._keys.encrypt(secret.get_secret_value().encode()).decode()

    def open(self, sealed: str) -> SecretStr:
        """The secret that was sealed. Raises SealingUnavailable, also if it was sealed with another key."""
        try:
            return SecretStr(self._keys.decrypt(sealed.encode()).decode())
        except InvalidToken:
            raise SealingUnavailable(
                "A stored secret was sealed with a key that is not among FLATTENGPT_SECRET_KEYS: add that key."
            ) from None

    def reseal(self, sealed: str) -> str:
        """The same secret sealed with the newest key. Raises SealingUnavailable."""
        return self.seal(self.open(sealed))

    @cached_property
    def _keys(self) -> MultiFernet:
        self.check()
        fernets = list(self._configured)
        # A file from before the setting goes on opening what it sealed.
        if self._file is not None and (not fernets or self._file.exists()):
            fernets.append(_fernet(_from_file(self._file), str(self._file)))
        return MultiFernet(fernets)


def _fernets(keys: SecretStr) -> list[Fernet]:
    given = [key.strip() for key in keys.get_secret_value().split(",")]
    return [_fernet(key, "FLATTENGPT_SECRET_KEYS") for key in given if key]


def _fernet(key: str, where: str) -> Fernet:
    try:
        return Fernet(key)
    except ValueError:
        raise SealingUnavailable(
            f"{where} holds what is no key: give 32 random bytes in base64, as `openssl rand -base64 32` prints them."
        ) from None


def _from_file(file: Path) -> str:
    """The file's key, made if there is none; the file of whoever was first stays, and is whole when it is seen."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, own = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")  # its mode is 0600
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(Fernet.generate_key() + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
            with suppress(FileExistsError):
                os.link(own, file)
        finally:
            os.unlink(own)
    return file.read_text().strip()
