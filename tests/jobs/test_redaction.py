"""What looks like a secret is blanked, and nothing else is."""

import json

import pytest

from jobs.redaction import redact

TOKEN = "hf_" + "aB3dE6gH9j" * 3 + "kLmN"
API_KEY = "fgpt_" + "a2" * 8 + "_" + "b7" * 20 + "0f0f0f0f"


@pytest.mark.parametrize(
    "secret",
    [
        TOKEN,
        API_KEY,
        "hf_oauth_eyJhbGciOi.JFZERTQSJ9-x.sig_nature",
        "hf_jwt_eyJhbGciOi.JFZERTQSJ9",
        "api_org_" + "x" * 34,
        "whsec_" + "aB3+/9=" * 6,
    ],
)
@pytest.mark.parametrize("text", ["{}", "token={}, and more", "https://user:{}@host/x?key={}", "('{}',)", "a\n{}\tb"])
def test_a_secret_is_blanked(secret: str, text: str) -> None:
    whole = text.format(secret, secret)
    assert secret not in redact(whole)
    assert redact(whole).count("[secret]") == whole.count(secret)


def test_a_line_of_json_stays_one() -> None:
    """There a line break before the token is the letter n."""
    entry = {"exception": f"Traceback\n{TOKEN}\nend", "header": f"Bearer {'x' * 20}", "url": "redis://:pass@host/0"}
    assert json.loads(redact(json.dumps(entry))) == {
        "exception": "Traceback\n[secret]\nend",
        "header": "Bearer [secret]",
        "url": "redis://:[secret]@host/0",
    }


@pytest.mark.parametrize(
    "text",
    [
        "huggingface_hub.hf_hub_download and hf_transfer",
        "filesystem://guest:**@localhost//",
        "http://127.0.0.1:8000/jobs?at=12:30@x",
        "fgpt_short, hf_short",
        "asks for bearer authentication",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text
