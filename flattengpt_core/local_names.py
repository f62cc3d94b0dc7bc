"""How a request names what is kept under a name on this machine: `local:NAME`. One name, and never a path."""

import re

LOCAL = "local:"
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
NAME_WORDS = "one name of letters, digits, '.', '_' and '-', which starts with a letter or digit"


def local_name(name: str) -> str | None:
    """The NAME of `local:NAME`; None if that is no such name."""
    bare = name.removeprefix(LOCAL)
    return bare if bare != name and re.fullmatch(NAME_PATTERN, bare) else None
