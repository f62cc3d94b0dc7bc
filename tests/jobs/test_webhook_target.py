"""Which URLs a webhook may have, and which addresses count as public."""

import ipaddress

import pytest

from flattengpt_core.errors import InvalidRequest
from jobs.webhook_target import MAX_URL, Target, TargetRules, is_public, parse

STRICT = TargetRules(allow_private=False, allow_http=False)
OPEN = TargetRules(allow_private=True, allow_http=True)


def refusal(url: str, rules: TargetRules = STRICT) -> str:
    """Why a URL is refused; empty if it is not."""
    try:
        rules.check(parse(url))
    except ValueError as error:
        return str(error)
    except InvalidRequest as error:
        return error.message if error.field == "webhook.url" else ""
    return ""


def test_the_parts_of_a_url() -> None:
    assert parse("https://Example.ORG/Hook/a?Token=x&y") == Target(True, "example.org", 443, "/Hook/a?Token=x&y")
    assert parse("http://example.org") == Target(False, "example.org", 80, "/")
    assert parse("https://[2606:4700::1111]:8443?q") == Target(True, "2606:4700::1111", 8443, "/?q")


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org", "https://hooks.example.org:8443/x?token=t", "https://1.1.1.1/", "https://_a.b-c.org/",
        "https://[2606:4700:4700::1111]/", "https://xn--bcher-kva.example/", "https://1.example.org/",
    ],
)  # fmt: skip
def test_urls_on_the_public_internet(url: str) -> None:
    assert refusal(url) == ""


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/", "https://127.1.2.3/", "https://[::1]/", "https://169.254.169.254/latest/meta-data/",
        "https://10.0.0.1/", "https://172.16.0.1/", "https://192.168.1.1/", "https://100.64.0.1/", "https://0.0.0.0/",
        "https://224.0.0.1/", "https://255.255.255.255/", "https://[::]/", "https://[fe80::1]/", "https://[fd00::1]/",
        "https://[fec0::1]/", "https://[ff02::1]/", "https://[::ffff:127.0.0.1]/", "https://[::ffff:7f00:1]/",
        "https://[::ffff:1.1.1.1]/", "https://[::127.0.0.1]/", "https://[64:ff9b::7f00:1]/",
        "https://[64:ff9b:1::7f00:1]/", "https://[2002:7f00:1::]/", "https://[2001:0:7f00:1::]/",
        "https://localhost/", "https://LOCALHOST:8443/", "https://a.localhost/", "https://metadata/", "https://redis/",
        "https://example.org:22/", "https://example.org:0/", "http://example.org/",
    ],
)  # fmt: skip
def test_targets_inside_are_refused_unless_they_are_allowed(url: str) -> None:
    assert refusal(url)
    assert refusal(url, OPEN) == ""


@pytest.mark.parametrize(
    "url",
    [
        "", "example.org", "//example.org/", "https://", "https:///x", "https:example.org", "ftp://example.org/",
        "file:///etc/passwd", "https://user@example.org/", "https://user:secret@example.org/", "https://@example.org/",
        "https://example.org/#part", "https://example.org/#", "https://example.org\\@inside/", "https://exa mple.org/",
        "https://example.org/\r\nHost: inside", "https://example.org/\t", "https://exämple.org/", "https://example.org./",
        "https://localhost./", "https://127.0.0.1./", "https://2130706433/", "https://0x7f000001/", "https://0x7f.1/",
        "https://0177.0.0.1/", "https://127.1/", "https://127.0.0.0x1/", "https://1.2.3.4.5/", "https://256.1.1.1/",
        "https://[::1/", "https://[::1%25eth0]/", "https://[fe80::1%eth0]/", "https://[::g]/", "https://example.org:x/",
        "https://example.org:99999/", "https://a..b/", "https://-a.org/", "https://%31%32%37.0.0.1/",
        "https://①②⑦.0.0.1/", "https://example.org/" + "x" * MAX_URL,
    ],
)  # fmt: skip
def test_what_is_no_url_to_send_to_is_refused_whatever_is_allowed(url: str) -> None:
    said = refusal(url, OPEN)
    assert said
    assert "secret" not in said


def test_http_and_addresses_inside_are_allowed_apart() -> None:
    http, inside = TargetRules(allow_private=False, allow_http=True), TargetRules(allow_private=True, allow_http=False)
    assert refusal("http://example.org/", http) == ""
    assert refusal("http://10.0.0.1/", http)
    assert refusal("https://10.0.0.1/", inside) == ""
    assert "FLATTENGPT_WEBHOOK_ALLOW_HTTP" in refusal("http://10.0.0.1/", inside)


def test_one_address_inside_spoils_the_others() -> None:
    public, loopback = ipaddress.ip_address("1.1.1.1"), ipaddress.ip_address("127.0.0.1")
    assert is_public(public)
    assert STRICT.allow([public])
    assert not STRICT.allow([public, loopback])
    assert OPEN.allow([public, loopback])
