"""Blanks what looks like a secret: the last line of defence of whatever is written for people to read.

The first is that secrets are not written: they are `SecretStr`, and libraries' own texts are not passed on.
"""

import re

BLANK = "[secret]"

# No word boundary before them: in JSON a token may follow the `n` of an escaped line break. Long enough for names
# such as hf_hub_download to stay.
_SECRETS = re.compile(
    r"""
      hf_[A-Za-z0-9]{20,}             # a Hub token
    | hf_(?:oauth|jwt)_[\w.-]+        # one that the Hub made for an application
    | api_org_[A-Za-z0-9]{20,}        # an organisation's, as they once were
    | fgpt_\w{20,}                    # an API key of this service
    | whsec_[A-Za-z0-9+/=]{20,}       # what webhooks are signed with
    | (?i:(?<=bearer\ ))[A-Za-z0-9._~+/=-]{16,}  # an Authorization header's
    """,
    re.VERBOSE,
)
_PASSWORD_IN_URL = re.compile(r"""(://[^\s:/@"'\\]*:)(?!\*+@)[^\s/@"'\\]+(?=@)""")


def redact(text: str) -> str:
    """The text with a blank in place of each secret."""
    return _PASSWORD_IN_URL.sub(rf"\1{BLANK}", _SECRETS.sub(BLANK, text))
