"""What webhooks are signed with: one secret an owner, sealed in the database, made when it is first asked for.

After a rotation the old secret signs beside the new one for a day, for receivers to change over in.
"""

import base64
import secrets
from dataclasses import dataclass
from datetime import datetime

from pydantic import SecretStr
from sqlalchemy import Engine, case, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session
from standardwebhooks import Webhook

from jobs.clock import now_plus
from jobs.database import sessions
from jobs.errors import SealingUnavailable
from jobs.sealing import Sealer
from jobs.tables import WebhookSecret

OVERLAP_SECONDS = 86_400.0

_SECRET_BYTES = 32


@dataclass(frozen=True)
class SigningSecret:
    """An owner's secret now. previous_until: how long the one before goes on signing, if it still does."""

    secret: SecretStr
    created_at: datetime
    previous_until: datetime | None


class WebhookSecrets:
    """The signing secrets of one database."""

    def __init__(self, engine: Engine, sealer: Sealer) -> None:
        self._write, self._read = sessions(engine)
        self._sealer = sealer

    def of(self, owner: str) -> SigningSecret:
        """The owner's secret, made if there is none. Raises SealingUnavailable."""
        row, overlaps = self._row(owner)
        return SigningSecret(self._sealer.open(row.sealed), row.created_at, row.previous_until if overlaps else None)

    def rotate(self, owner: str) -> SigningSecret:
        """Make a new secret; the one before goes on signing for a day, and one before that no more.

        One that cannot be opened any more signs no longer. Raises SealingUnavailable.
        """
        self._row(owner)
        with self._write.begin() as session:
            row = session.scalars(select(WebhookSecret).where(WebhookSecret.owner == owner).with_for_update()).one()
            secret = _new()
            row.previous, row.sealed = self._resealed(row.sealed), self._sealer.seal(secret)
            row.previous_until, row.created_at = now_plus(OVERLAP_SECONDS), now_plus()
            session.flush()
            session.refresh(row)
            return SigningSecret(secret, row.created_at, row.previous_until if row.previous else None)

    def sign(self, owner: str, message_id: str, sent_at: datetime, body: str) -> str:
        """The value of `webhook-signature`: one signature, or two while secrets change. Raises SealingUnavailable."""
        row, overlaps = self._row(owner)
        sealed = [row.sealed, row.previous] if overlaps and row.previous else [row.sealed]
        keys = (Webhook(self._sealer.open(one).get_secret_value()) for one in sealed)
        return " ".join(key.sign(message_id, sent_at, body) for key in keys)

    def _resealed(self, sealed: str) -> str | None:
        """Sealed with the newest key; None if the one that it was sealed with is lost."""
        try:
            return self._sealer.reseal(sealed)
        except SealingUnavailable:
            return None

    def _row(self, owner: str) -> tuple[WebhookSecret, bool]:
        """The owner's row, and whether its previous secret is still in use."""
        with self._read() as session:
            found = _found(session, owner)
        if found is None:
            with self._write.begin() as session:
                self._insert(session, owner)
                found = _found(session, owner)
        assert found is not None
        return found

    def _insert(self, session: Session, owner: str) -> None:
        dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
        first = dialect.insert(WebhookSecret).values(owner=owner, sealed=self._sealer.seal(_new()))
        session.execute(first.on_conflict_do_nothing())


def _found(session: Session, owner: str) -> tuple[WebhookSecret, bool] | None:
    in_use = WebhookSecret.previous.is_not(None) & (WebhookSecret.previous_until > now_plus())
    overlaps = case((in_use, True), else_=False)
    row = session.execute(select(WebhookSecret, overlaps).where(WebhookSecret.owner == owner)).first()
    return None if row is None else (row[0], row[1])


def _new() -> SecretStr:
    return SecretStr(f"whsec_{base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()}")
