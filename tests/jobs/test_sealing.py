"""Secrets at rest: what seals and opens them, and what is said where neither is possible."""

import base64
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import SecretStr

from jobs.errors import SealingUnavailable
from jobs.sealing import KEY_FILE, Sealer
from jobs.settings import Settings

SECRET = SecretStr("whsec_something")


def key() -> str:
    """As `openssl rand -base64 32` prints one."""
    return base64.b64encode(secrets.token_bytes(32)).decode()


def sealer(folder: Path, *keys: str, broker_url: str = "redis://host") -> Sealer:
    return Sealer(Settings(data_dir=folder, broker_url=broker_url, secret_keys=SecretStr(",".join(keys))))


def test_what_is_sealed_opens_and_cannot_be_read(tmp_path: Path) -> None:
    one = sealer(tmp_path, key())
    sealed = one.seal(SECRET)
    assert one.open(sealed) == SECRET
    assert "something" not in sealed
    assert base64.b64encode(b"something").decode().rstrip("=") not in sealed
    assert one.seal(SECRET) != sealed


def test_a_newer_key_seals_and_the_older_ones_open(tmp_path: Path) -> None:
    old, new = key(), key()
    sealed = sealer(tmp_path, old).seal(SECRET)
    both = sealer(tmp_path, new, f" {old}\n", "")
    assert both.open(sealed) == SECRET
    for newly in (both.seal(SECRET), both.reseal(sealed)):
        assert sealer(tmp_path, new).open(newly) == SECRET
        with pytest.raises(SealingUnavailable, match="add that key"):
            sealer(tmp_path, old).open(newly)


def test_an_embedded_service_makes_its_own_key_when_it_needs_one(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    one = sealer(folder, broker_url="")
    assert one.available
    assert not folder.exists()
    sealed = one.seal(SECRET)
    assert [file.name for file in folder.iterdir()] == [KEY_FILE]
    assert (folder / KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert sealer(folder, broker_url="").open(sealed) == SECRET
    assert sealer(folder, key(), broker_url="").open(sealed) == SECRET, "the file goes on opening what it sealed"
    (folder / KEY_FILE).unlink()
    with pytest.raises(SealingUnavailable):
        sealer(folder, broker_url="").open(sealed)


def test_processes_that_need_a_key_at_once_get_the_same(tmp_path: Path) -> None:
    sealers = [sealer(tmp_path, broker_url="") for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        sealed = list(pool.map(lambda one: one.seal(SECRET), sealers))
    assert [sealers[-1].open(one) for one in sealed] == [SECRET] * 8
    assert [file.name for file in tmp_path.iterdir()] == [KEY_FILE]


def test_a_service_of_several_hosts_makes_no_key(tmp_path: Path) -> None:
    without = sealer(tmp_path)
    assert not without.available
    for attempt in (without.check, lambda: without.seal(SECRET), lambda: without.open("x")):
        with pytest.raises(SealingUnavailable, match="FLATTENGPT_SECRET_KEYS"):
            attempt()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", ["short", "x" * 44, "ä" * 44, base64.b64encode(b"x" * 31).decode()])
def test_what_is_no_key_is_said_without_quoting_it(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(SealingUnavailable, match="FLATTENGPT_SECRET_KEYS holds what is no key") as refusal:
        sealer(tmp_path, key(), wrong)
    assert wrong not in str(refusal.value)
    assert refusal.value.__suppress_context__
