"""What a model's card says of its licence, and what that licence asks of the names of models made from it.

Cards are others' texts: what does not look like a licence is not taken. Imports no torch.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load

from flattengpt_core.errors import InvalidRequest

CARD = "README.md"
FIELDS = ("license", "license_name", "license_link")
"""Of a card's metadata."""
MAX_CARD_BYTES = 1_000_000

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}")
_LINK = re.compile(r"https?://[A-Za-z0-9./_~%#?=&+-]{1,300}|[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Naming:
    """What a licence asks of who passes on a model made from its one. prefix: how its name begins. credit: shown."""

    prefix: str
    credit: str

    def is_kept_by(self, name: str) -> bool:
        """Whether the name begins so; case and what separates words do not count."""
        return _letters(name).startswith(_letters(self.prefix))


_LLAMA = Naming("Llama", "Built with Llama")
_NAMING = {
    "llama3": Naming("Llama-3", "Built with Meta Llama 3"),
    "llama3.1": _LLAMA,
    "llama3.2": _LLAMA,
    "llama3.3": _LLAMA,
    "llama4": _LLAMA,
}
"""Section 1.b.i of Meta's community licences, by what the Hub calls them. That of Llama 2 asks for no name."""


@dataclass(frozen=True)
class Licence:
    """A licence as cards name it. id: the Hub's, `other` included. name, link: what they add; a link may be a file."""

    id: str
    name: str | None = None
    link: str | None = None

    @property
    def naming(self) -> Naming | None:
        """What it asks of names, where that is known."""
        return _NAMING.get((self.name or "" if self.id == "other" else self.id).lower())

    def without_missing_file(self, folder: Path) -> "Licence":
        """The same, but for a link to a file that is not in the folder."""
        if self.link is None or "://" in self.link or (folder / self.link).is_file():
            return self
        return replace(self, link=None)


def licence_in(card: Mapping[str, Any]) -> Licence | None:
    """The licence that a card's metadata names; None if it names none, or several."""
    found = card.get("license")
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if not isinstance(found, str) or not _ID.fullmatch(found):
        return None
    return Licence(found, _text(card.get("license_name"), _NAME), _text(card.get("license_link"), _LINK))


def licence_of(checkpoint: Path) -> Licence | None:
    """The licence in the card of a checkpoint folder; None if there is no card that names one."""
    card = checkpoint / CARD
    if not card.is_file() or card.stat().st_size > MAX_CARD_BYTES:
        return None
    try:
        return licence_in(metadata_load(card) or {})
    except (ValueError, yaml.YAMLError, RecursionError):  # a card is prose first
        return None


def refuse_name(licence: Licence | None, name: str) -> None:
    """Refuse what the licence does not let a public model be called. Raises InvalidRequest.

    Args:
        name: a repository's, without its owner.
    """
    naming = licence.naming if licence else None
    if licence is not None and naming is not None and not naming.is_kept_by(name):
        raise InvalidRequest(
            f"The model's licence ({licence.name or licence.id}) wants the name of a public model made from it to "
            f"begin with {naming.prefix!r}, which {name!r} does not: choose another name, or a private repository.",
            field="publish.repo_id",
        )


def _text(found: Any, pattern: re.Pattern[str]) -> str | None:
    return found if isinstance(found, str) and pattern.fullmatch(found) else None


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
