"""What webhooks are signed with: an owner's own, sealed, and two at a time after a rotation."""

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, select, update
from standardwebhooks import Webhook, WebhookVerificationError

from jobs.clock import now_plus
from jobs.errors import SealingUnavailable
from jobs.sealing import Sealer
from jobs.settings import Settings
from jobs.tables import WebhookSecret
from jobs.webhook_secrets import WebhookSecrets
from tests.jobs.at_once import at_once

ID, BODY = "msg_1", json.dumps({"type": "job.succeeded"})


@pytest.fixture
def found(engine: Engine, settings: Settings) -> WebhookSecrets:
    return WebhookSecrets(engine, Sealer(settings))


def headers(found: WebhookSecrets, owner: str) -> dict[str, str]:
    now = datetime.now(UTC)
    return {
        "webhook-id": ID,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": found.sign(owner, ID, now, BODY),
    }


def verifies(secret: SecretStr, signed: dict[str, str]) -> bool:
    try:
        Webhook(secret.get_secret_value()).verify(BODY, signed)
    except WebhookVerificationError:
        return False
    return True


def test_a_secret_is_made_once_and_is_one_owners(found: WebhookSecrets) -> None:
    mine, theirs = found.of("mine"), found.of("theirs")
    assert found.of("mine") == mine
    assert mine.secret != theirs.secret
    assert mine.previous_until is None
    prefix, _, key = mine.secret.get_secret_value().partition("_")
    assert (prefix, len(base64.b64decode(key, validate=True))) == ("whsec", 32)
    signed = headers(found, "mine")
    assert verifies(mine.secret, signed)
    assert not verifies(theirs.secret, signed)


def test_those_who_ask_first_at_once_get_the_same(found: WebhookSecrets) -> None:
    assert len({one.secret.get_secret_value() for one in at_once(*[lambda: found.of("")] * 6)}) == 1


def test_after_a_rotation_both_secrets_verify_for_a_day(found: WebhookSecrets, engine: Engine) -> None:
    old = found.of("")
    other = found.of("other")
    new = found.rotate("")
    assert found.of("") == new
    assert new.secret != old.secret
    assert new.previous_until is not None
    assert abs(new.previous_until - new.created_at - timedelta(days=1)) < timedelta(seconds=5)
    signed = headers(found, "")
    assert len(signed["webhook-signature"].split(" ")) == 2
    assert verifies(old.secret, signed)
    assert verifies(new.secret, signed)
    with engine.begin() as connection:
        connection.execute(update(WebhookSecret).values(previous_until=now_plus(-1)))
    signed = headers(found, "")
    assert len(signed["webhook-signature"].split(" ")) == 1
    assert verifies(new.secret, signed)
    assert not verifies(old.secret, signed)
    assert found.of("").previous_until is None
    assert found.of("other") == other


def test_a_second_rotation_ends_the_first_secret(found: WebhookSecrets) -> None:
    first, second, third = found.of(""), found.rotate(""), found.rotate("")
    signed = headers(found, "")
    assert [verifies(one.secret, signed) for one in (first, second, third)] == [False, True, True]


def test_the_database_holds_no_secret_in_clear(found: WebhookSecrets, engine: Engine) -> None:
    secrets = [found.of("").secret, found.rotate("").secret]
    with engine.connect() as connection:
        (row,) = connection.execute(select(WebhookSecret)).all()
    stored = " ".join(map(str, row))
    for secret in secrets:
        text = secret.get_secret_value()
        assert text not in stored
        assert text.removeprefix("whsec_") not in stored
        assert text not in repr(found.of(""))


def test_a_rotation_seals_the_old_secret_with_the_newest_key(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    old, new = (base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2))

    def with_keys(*keys: str) -> WebhookSecrets:
        update = {"secret_keys": SecretStr(",".join(keys)), "broker_url": "redis://host"}
        return WebhookSecrets(engine, Sealer(settings.model_copy(update=update)))

    first = with_keys(old).of("")
    with pytest.raises(SealingUnavailable):
        with_keys(new).of("")
    second = with_keys(new, old).rotate("")
    signed = headers(with_keys(new), "")
    assert verifies(first.secret, signed)
    assert verifies(second.secret, signed)
    lost = with_keys(base64.b64encode(bytes([3]) * 32).decode())
    third = lost.rotate("")
    assert third.previous_until is None
    assert lost.of("") == third, "an owner whose secret cannot be opened any more gets a new one"
    assert verifies(third.secret, headers(lost, ""))
