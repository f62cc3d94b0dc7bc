"""Posting to where a client said: what is sent, what is refused, and how long a receiver may take."""

import datetime
import ipaddress
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from email.utils import format_datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from jobs.webhook_target import TargetRules
from tests.receiver import Receiver, Reply, receiving
from worker.guarded_post import Answer, GuardedPost, NotSent, resolve, seconds_to_wait

STRICT = TargetRules(allow_private=False, allow_http=True)
OPEN = TargetRules(allow_private=True, allow_http=True)
NAME = "hooks.example.org"

Resolver = Callable[[str, int], Sequence[str]]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def post(url: str, resolver: Resolver = resolve, rules: TargetRules = OPEN, seconds: float = 5) -> Answer:
    return GuardedPost(rules, resolver=resolver, timeout_seconds=seconds)(url, {"x-test": "1"}, b"body")


def reason(url: str, resolver: Resolver = resolve, rules: TargetRules = OPEN, seconds: float = 5) -> str:
    with pytest.raises(NotSent) as refusal:
        post(url, resolver, rules, seconds)
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None, (
        "what libraries say may hold the URL"
    )
    return refusal.value.reason


def answering(*addresses: str) -> Resolver:
    return lambda _host, _port: addresses


def named(receiver: Receiver) -> str:
    return f"http://{NAME}:{receiver.port}/hook?token=t"


def test_what_is_sent(receiver: Receiver) -> None:
    receiver.replies = [Reply(201)]
    assert post(named(receiver), answering("127.0.0.1")) == Answer(201, 0)
    (seen,) = receiver.seen
    assert (seen.path, seen.body, seen.headers["x-test"]) == ("/hook?token=t", b"body", "1")
    assert seen.headers["host"] == f"{NAME}:{receiver.port}"
    assert seen.headers["content-length"] == "4"


def test_a_name_of_this_machine_is_resolved(receiver: Receiver) -> None:
    assert post(f"http://localhost:{receiver.port}/").status == 204


# Where to


@pytest.mark.parametrize(
    "spoilt", [("127.0.0.1",), ("1.1.1.1", "127.0.0.1"), ("::ffff:127.0.0.1",), ("64:ff9b::7f00:1",)]
)
def test_a_name_that_leads_inside_is_not_connected_to(receiver: Receiver, spoilt: tuple[str, ...]) -> None:
    assert reason(named(receiver), answering(*spoilt), STRICT) == "the host is not on the public internet"
    assert receiver.seen == []


def test_an_address_inside_is_not_connected_to_even_if_it_passed_the_submit(receiver: Receiver) -> None:
    assert reason(receiver.url, rules=STRICT) == "the URL is not allowed"
    assert reason("file:///etc/passwd") == "the URL is not allowed"
    assert receiver.seen == []


def test_a_name_that_is_rebound_after_the_check_has_no_say(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is asked for once; what is connected to is the address that was checked, by number."""
    answers, connected = [["1.1.1.1"], ["127.0.0.1"], ["127.0.0.1"]], []

    def connect(address: tuple[str, int], *_: object, **__: object) -> None:
        connected.append(address[0])
        raise ConnectionRefusedError

    monkeypatch.setattr("socket.create_connection", connect)
    assert reason(named(receiver), lambda _host, _port: answers.pop(0), STRICT) == "the host takes no connection"
    assert connected == ["1.1.1.1"]
    assert len(answers) == 2
    assert receiver.seen == []


def test_the_next_address_is_tried_where_one_takes_no_connection(receiver: Receiver) -> None:
    assert post(named(receiver), answering("::1", "127.0.0.1")).status == 204


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(receiver: Receiver, status: int) -> None:
    with receiving() as other:
        receiver.replies = [Reply(status, {"location": other.url})]
        assert post(receiver.url).status == status
        assert other.seen == []


def test_proxies_of_the_environment_are_not_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert post(receiver.url).status == 204
        assert proxy.seen == []


def test_a_name_that_does_not_resolve() -> None:
    def unknown(_host: str, _port: int) -> Sequence[str]:
        raise OSError("no such name")

    for resolver in (unknown, answering(), answering("fe80::1%")):
        assert reason("https://hooks.example.org/", resolver) == "the host's name does not resolve"


# How long


@pytest.mark.parametrize("reply", [Reply(seconds=30), Reply(drip=0.1)])
def test_a_slow_receiver_has_one_deadline(receiver: Receiver, reply: Reply) -> None:
    receiver.replies = [reply]
    started = time.monotonic()
    assert reason(receiver.url, seconds=0.6) == "no answer in time"
    assert 0.5 < time.monotonic() - started < 5


def test_a_body_without_end_is_not_read(receiver: Receiver) -> None:
    receiver.replies = [Reply(200, {"content-length": str(10**12)})]
    assert post(receiver.url).status == 200


def test_a_receiver_that_speaks_no_http(receiver: Receiver) -> None:
    receiver.replies = [Reply(200, {"bad header\x01": "x"})]
    assert reason(receiver.url) == "the connection broke, or the answer was no HTTP"


def testseconds_to_wait() -> None:
    now = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)  # by the receiver's clock, whatever ours says
    later = format_datetime(now + datetime.timedelta(minutes=2), usegmt=True)
    date = format_datetime(now, usegmt=True)
    cases = {"120": 120.0, later: 120.0, date: 0.0, "-5": 0.0, "soon": 0.0, "9" * 50: 0.0, "١٢": 0.0}
    for asked, seconds in cases.items():
        assert seconds_to_wait([(b"Retry-After", asked.encode()), (b"Date", date.encode())]) == seconds, asked
    assert seconds_to_wait([(b"Retry-After", later.encode())]) == 0
    assert seconds_to_wait([]) == 0


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate, signed by itself, for NAME alone, with its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = tmp_path_factory.mktemp("tls") / "certificate.pem"
    file.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    return file


@pytest.fixture
def secure(certificate: Path) -> Iterator[tuple[Receiver, list[str | None]]]:
    """A receiver that speaks TLS, and the names that it was asked for."""
    context, names = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), list[str | None]()
    context.load_cert_chain(certificate)
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    with receiving(context) as receiver:
        yield receiver, names


def test_tls_is_for_the_name_though_the_connection_is_to_an_address(
    secure: tuple[Receiver, list[str | None]], certificate: Path
) -> None:
    receiver, names = secure
    send = GuardedPost(OPEN, resolver=answering("127.0.0.1"), tls=ssl.create_default_context(cafile=str(certificate)))
    assert send(f"https://{NAME}:{receiver.port}/", {}, b"{}").status == 204
    assert names == [NAME]
    with pytest.raises(NotSent, match="TLS"):
        send(f"https://other.example.org:{receiver.port}/", {}, b"{}")
    assert len(receiver.seen) == 1


def test_a_certificate_that_nobody_vouches_for_is_not_believed(secure: tuple[Receiver, list[str | None]]) -> None:
    receiver, _ = secure
    assert "TLS" in reason(f"https://{NAME}:{receiver.port}/", answering("127.0.0.1"))
    assert receiver.seen == []


def test_the_systems_resolver_gives_addresses() -> None:
    assert {ipaddress.ip_address(address).is_loopback for address in resolve("localhost", 80)} == {True}
