"""Requests that mean harm, or that no client of good will sends: one line each, for the table of test_hostile.py.

Bytes as they go over the wire, since a client library would set most of them right.
"""

import gzip
import io
import json
import struct
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.api.conftest import REQUEST

JSON = {"Content-Type": "application/json"}
TAR = {"Content-Type": "application/x-tar"}
GZIP = {"Content-Type": "application/gzip"}
GGUF = {"Content-Type": "application/octet-stream"}
TEXT = {"Content-Type": "text/plain"}
LINES = {"Content-Type": "application/jsonl"}


@dataclass(frozen=True)
class Hostile:
    """A request. headers: as bytes of latin-1, beside Host, Content-Length and the key, which they may replace."""

    name: str
    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


def requests() -> Iterator[Hostile]:
    """All of them."""
    yield from _jobs()
    yield from _bodies()
    yield from _webhooks()
    yield from _queries()
    yield from _paths()
    yield from _headers()
    yield from _archives()
    yield from _weights()
    yield from _uploads()


def _asked(name: str, **changes: Any) -> Hostile:
    return Hostile(name, "POST", "/jobs", JSON, json.dumps(REQUEST | changes).encode())


def _jobs() -> Iterator[Hostile]:
    """`POST /jobs` with one wrong field."""
    for model in (
        "../x", "..", ".", "/", "/etc/passwd", "./tiny", "~/tiny", "local:", "local:..", "local:.", "local:../tiny",
        "local:/etc", "local:tiny/..", "local:tiny/../../x", "local:..%2ftiny", "local:tiny\0", "local:.upload-x",
        "local:\u202eynit", "local:ti\u200bny", "local:tiny\u0301", "local:\uff34INY", "local:-rf", "local:$(id)",
        "local:`id`", "local:tiny;id", "local:tiny|id", "local:{tiny}", "local:%s%n", "local:tiny\r\nX-Injected: 1",
        "org/../x", "org/..", "../org", "a/b/c", "org/name\n", "org/\u043dame", "org//name", "org/name?x", "org/name#x",
        "C:\\x", "\\\\host\\share", "file:///etc/passwd", "http://169.254.169.254/", "s3://bucket/x", "", " ", "\ud800",
        "\0", "x" * 301, "LOCAL:tiny", "local::tiny", "org/name;rm -rf", "git+ssh://x/y", "org/" + "n" * 97,
    ):  # fmt: skip
        yield _asked(f"model {model[:30]!a}", model=model)
    for revision in (
        "../main",
        "-rf",
        "a b",
        "a\0",
        "--upload-pack=id",
        "",
        "x" * 129,
        "ma\u0456n",
        "main\n",
        "@{u}",
        "~1",
    ):
        yield _asked(f"revision {revision[:30]!a}", model="org/name", revision=revision)
    for number in (
        0,
        -1,
        6,
        2**31,
        2**63,
        2**64,
        10**300,
        1e308,
        -1e308,
        3.5,
        "4a",
        "\u0664a",
        [],
        {},
        "NaN",
        "Infinity",
    ):
        yield _asked(f"layers {number!a:.30}", layers=number)
    for share in (0, 1, -0.0, 1e-320, 1.0000001, 10**400, float("nan"), float("inf"), -float("inf"), "half", [0.5]):
        yield _asked(f"sparsity {share!a:.30}", layers=None, sparsity=share)
    for name, change in {
        "samples": {"calibration": {"samples": 2**62}},
        "sequence_length": {"calibration": {"sequence_length": 10**18}},
        "seed": {"calibration": {"seed": 2**32}},
        "text path": {"calibration": {"dataset": "../../etc/passwd"}},
        "text absolute": {"calibration": {"dataset": "/etc/passwd"}},
        "text local": {"calibration": {"dataset": "local:../x"}},
        "text plus": {"calibration": {"dataset": "python-docs+"}},
        "text pluses": {"calibration": {"dataset": "python-docs+" * 30}},
        "text NUL": {"calibration": {"dataset": "a\0"}},
        "text URL": {"calibration": {"dataset": "http://localhost/x"}},
        "calibration list": {"calibration": []},
        "calibration null": {"calibration": None},
        "learning rate": {"recovery": {"learning_rate": 1e999}},
        "learning rate tiny": {"recovery": {"learning_rate": -5e-324}},
        "rank": {"recovery": {"rank": 10**9}},
        "steps": {"recovery": {"steps": 10**12}},
        "epochs": {"recovery": {"epochs": 10**12}},
        "targets": {"recovery": {"targets": ["__class__"]}},
        "many targets": {"recovery": {"targets": ["q_proj"] * 10_000}},
        "precision": {"recovery": {"precision": "float8"}},
        "task path": {"evaluation": {"tasks": ["../../task"]}},
        "task file": {"evaluation": {"tasks": ["task.yaml"]}},
        "task code": {"evaluation": {"tasks": ["__import__('os')"]}},
        "many tasks": {"evaluation": {"tasks": ["piqa"] * 5000}},
        "windows": {"evaluation": {"windows": 10**20}},
        "new tokens": {"evaluation": {"benchmark_new_tokens": 10**9}},
        "dtype": {"dtype": "float64"},
        "method": {"method": "os.system"},
        "method NUL": {"method": "shortgpt\0"},
        "method object": {"method": {"$ne": ""}},
        "ratio": {"layers": None, "target": {"max_perplexity_ratio": 1e999}},
        "two targets": {"sparsity": 0.5},
        "publish path": {"publish": {"repo_id": "../../x"}},
        "publish URL": {"publish": {"repo_id": "https://evil.example/x"}},
        "publish NUL": {"publish": {"repo_id": "org/a\0b"}},
        "publish private": {"publish": {"repo_id": "org/name", "private": "maybe"}},
        "unknown field": {"__proto__": {"admin": True}},
        "dunder": {"__class__": "x"},
        "owner": {"owner": "another"},
        "status": {"status": "succeeded"},
        "escape field": {"\x1b[31mred\r\n": 1},
        "long field": {"x" * 500_000: 1},
        "many fields": {f"field{n}": n for n in range(2000)},
    }.items():
        yield _asked(name, **change)
    for name, labels in {
        "NUL": {"team": "a\0b"},
        "surrogate": {"team": "\udfff"},
        "surrogate key": {"\ud800": "x"},
        "CRLF": {"team": "a\r\nSet-Cookie: x=1"},
        "escape": {"team": "\x1b]0;x\x07"},
        "delete": {"team": "\x7f"},
        "long": {"team": "x" * 513},
        "long key": {"k" * 65: "x"},
        "empty key": {"": "x"},
        "quote key": {"a'b": "x"},
        "json path": {"$.team": "x"},
        "bracket": {"a[0]": "x"},
        "colon": {"a:b": "x"},
        "space": {"a b": "x"},
        "unicode key": {"t\u0435am": "x"},
        "many": {f"k{n}": "" for n in range(17)},
        "number": {"team": 1},
        "null": {"team": None},
        "nested": {"team": {"a": {"b": {}}}},
        "list": ["team"],
        "string": "team",
    }.items():  # fmt: skip
        yield _asked(f"label {name}", labels=labels)


def _bodies() -> Iterator[Hostile]:
    """`POST /jobs` with a body that is wrong as a whole."""
    plain = json.dumps(REQUEST).encode()
    start = plain[:-1]
    for name, body in {
        "empty": b"",
        "null": b"null",
        "list": b"[]",
        "string": b'"local:tiny"',
        "number": b"1e999999999",
        "cut": start,
        "trailing": plain + b"}",
        "two": plain + plain,
        "comment": b"/**/" + plain + b"//",
        "single quotes": plain.replace(b'"', b"'"),
        "overlong UTF-8": start + b', "x": "\xc0\xae"}',
        "no UTF-8": start + b', "x": "\xff"}',
        "encoded surrogate": start + b', "x": "\xed\xa0\x80"}',
        "NUL": plain + b"\0",
        "raw control": start + b', "x": "\x01"}',
        "bad escape": start + b', "x": "\\x41"}',
        "half escape": start + b', "x": "\\ud8"}',
        "lone surrogate": start + b', "\\ud800": 1}',
        "deep list": b"[" * 100_000,
        "deep list closed": b"[" * 50_000 + b"]" * 50_000,
        "deep object": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        "deep field": start + b', "labels": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
        "long number": start + b', "layers": 1' + b"0" * 5000 + b"}",
        "long fraction": start + b', "sparsity": 0.' + b"9" * 100_000 + b"}",
        "exponent": start + b', "layers": 1e400}',
        "hexadecimal": start + b', "layers": 0x4}',
        "twice": start + b', "layers": 4, "layers": 99999999}',
        "huge": b'{"model": "' + b"x" * 1_100_000 + b'"}',
        "gzip": gzip.compress(plain),
        "XML": b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>',
        "YAML": b"!!python/object/apply:os.system [id]",
        "pickle": b"cos\nsystem\n(S'id'\ntR.",
        "form": b"model=local%3Atiny&layers=4",
    }.items():  # fmt: skip
        yield Hostile(f"body {name}", "POST", "/jobs", JSON, body)
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/xml",
        "",
        "*/*",
        "application/x-yaml",
    ):
        yield Hostile(f"body as {kind!a}", "POST", "/jobs", {"Content-Type": kind}, plain)
    yield Hostile("body encoded", "POST", "/jobs", JSON | {"Content-Encoding": "gzip"}, gzip.compress(plain))


def _webhooks() -> Iterator[Hostile]:
    """Where a message must not be sent (SSRF), and what is no address."""
    for url in (
        "http://example.org/", "https://127.0.0.1/", "https://127.1/", "https://127.000.000.001/",
        "https://2130706433/", "https://0x7f000001/", "https://0x7f.0.0.1/", "https://0177.0.0.1/", "https://0/",
        "https://0.0.0.0/", "https://localhost/", "https://LOCALHOST/", "https://localhost./", "https://a.localhost/",
        "https://redis/", "https://[::1]/", "https://[::]/", "https://[::ffff:127.0.0.1]/", "https://[::ffff:7f00:1]/",
        "https://[fe80::1]/", "https://[fe80::1%25eth0]/", "https://[fd00::1]/", "https://[64:ff9b::7f00:1]/",
        "https://[2002:7f00:1::]/", "https://[2001:0:7f00:1::]/", "https://[::127.0.0.1]/",
        "https://169.254.169.254/latest/meta-data/", "https://[fd00:ec2::254]/", "https://metadata/computeMetadata/v1/",
        "https://100.100.100.200/", "https://100.64.0.1/", "https://10.0.0.1/", "https://172.16.0.1/",
        "https://192.168.0.1/", "https://192.0.2.1/", "https://198.18.0.1/", "https://224.0.0.1/",
        "https://255.255.255.255/", "https://240.0.0.1/", "https://127.0.0.1.:443/", "https://127.0.0.1:8000/jobs",
        "https://example.org:22/", "https://example.org:25/", "https://example.org:0/", "https://example.org:99999/",
        "https://example.org:-1/", "https://example.org:x/", "https://user:password@example.org/",
        "https://example.org@127.0.0.1/", "https://127.0.0.1#@example.org/", "https://127.0.0.1\\@example.org/",
        "https://example.org\\.evil/", "https://exa mple.org/", "https://example.org/\r\nX: y",
        "https://example.org/\0", "https://ex\u0430mple.org/", "https://①②⑦.⓪.⓪.①/", "https://127。0。0。1/",
        "https:///etc/passwd", "https://", "https:", "//example.org/", "/hook", "", "example.org", "ftp://example.org/",
        "file:///etc/passwd", "gopher://example.org/", "redis://127.0.0.1:6379/", "unix:///var/run/docker.sock",
        "javascript:alert(1)", "data:text/plain,x", "https://" + "a" * 64 + ".example.org/",
        "https://a..b.example.org/", "https://-a.example.org:443\t/", "https://example.org/#fragment",
        "https://example.org/" + "x" * 2048, "\ud800",
    ):  # fmt: skip
        yield _asked(f"webhook {url[:45]!a}", webhook={"url": url})
    for name, hook in {
        "a string": "https://example.org/",
        "no url": {"events": ["failed"]},
        "an unknown event": {"url": "https://example.org/", "events": ["*"]},
        "no event": {"url": "https://example.org/", "events": []},
        "many events": {"url": "https://example.org/", "events": ["failed"] * 100},
        "headers": {"url": "https://example.org/", "headers": {"Host": "127.0.0.1"}},
        "a secret": {"url": "https://example.org/", "secret": "whsec_mine"},
        "a list of urls": {"url": ["https://example.org/"]},
    }.items():
        yield _asked(f"webhook with {name}", webhook=hook)


def _queries() -> Iterator[Hostile]:
    for query in (
        "cursor=x", "cursor=", "cursor=" + "0" * 27, "cursor=%00" + "0" * 25, "cursor=" + "'" * 26,
        "cursor=01M8715SXX5VDXZSFJX3F7CK%0A", "cursor=..%2F..%2Fetc%2Fpasswd", "cursor=" + "%F0%9F%94%8D" * 26,
        "cursor=%D9%A0" + "0" * 25, "cursor=eyJpZCI6IHsiJGd0IjogIiJ9fQ==", "cursor=1%20OR%201=1%20--%20aaaaaaaaa",
        "cursor=" + "0" * 60_000, "limit=0", "limit=-1", "limit=201", "limit=99999999999999999999999", "limit=1e3",
        "limit=0x10", "limit=", "limit=NaN", "limit=%D9%A1%D9%A0%20x", "limit=1;DROP%20TABLE%20job", "limit=1.5",
        "status=done", "status=", "status=%00", "status=queued'--", "status=QUEUED", "label=", "label=team", "label=:x",
        "label=team:", "label=a%00:b", "label=a:%00", "label=a:b%0D%0AX:y", "label=%ED%A0%80", "model=%00",
        "model=" + "x" * 301, "model=a%0Ab", "method=magic", "method=%00", "method=", "created_after=yesterday",
        "created_after=0", "created_after=1e400", "created_after=2026-11-26T10:00:00",
        "created_after=2026-13-01T00:00:00Z", "created_after=0000-01-01T00:00:00Z",
        "created_after=0001-01-01T00:00:00%2B23:59", "created_before=9999-12-31T23:59:59-23:59",
        "created_before=99999-01-01T00:00:00Z", "created_before=-1", "created_before=2026-11-26T10:00:00%2B99:00",
        "created_before=%00",
    ):  # fmt: skip
        yield Hostile(f"jobs?{query[:45]}", "GET", f"/jobs?{query}")
    for query in (
        "after=-1",
        "after=2147483648",
        "after=x",
        "after=1e9",
        "after=%00",
        "limit=0",
        "limit=1001",
        "limit=99999999999999999999",
    ):
        yield Hostile(f"events?{query}", "GET", f"/jobs/JOB/events?{query}")
    for seq in ("-1", "x", "2147483648", "1 ; 2", "1e3", "", "\xff", "9" * 5000):
        yield Hostile(
            f"Last-Event-ID {seq[:20]!a}",
            "GET",
            "/jobs/JOB/events",
            {"Last-Event-ID": seq, "Accept": "text/event-stream"},
        )


def _paths() -> Iterator[Hostile]:
    for path in (
        "/..", "/../", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/..%2f..%2fetc%2fpasswd", "/..%5c..%5cx",
        "/%00", "/%0d%0aX-Injected:%201", "//evil.example/", "/\\evil.example", "/.env", "/.git/config", "/secret.key",
        "/flattengpt.db", "/admin", "/keys", "/static/../x", "/openapi.json/..", "/docs/%2e%2e/x", "/metrics/",
        "/jobs/x/y", "/%ff%fe", "/%ed%a0%80", "/jobs%00", "/jobs;x=1", "/JOBS", "/%u002e", "/" + "a" * 8000,
    ):  # fmt: skip
        yield Hostile(f"path {path[:40]}", "GET", path)
    ids = (
        "x", "..", "%2e%2e", "..%2f..", "%00", "a%00b", "0", "-1", "null", "'%20OR%201=1--", "%F0%9F%94%8D", "%ff",
        "%ed%a0%80", "%D9%A1", "01M8715SXX5VDXZSFJX3F7CKD1", "01m8715sxx5vdxzsfjx3f7ckd1", "%0d%0aX-Injected:%201", "*",
        "%25", "a" * 4000,
    )  # fmt: skip
    for job_id in ids:
        yield Hostile(f"job {job_id[:30]}", "GET", f"/jobs/{job_id}")
    for job_id in ids[4:8]:
        yield Hostile(f"job {job_id} cancel", "POST", f"/jobs/{job_id}/cancel")
        yield Hostile(f"job {job_id} retry", "POST", f"/jobs/{job_id}/retry")
        yield Hostile(f"job {job_id} delete", "DELETE", f"/jobs/{job_id}")
        yield Hostile(f"job {job_id} events", "GET", f"/jobs/{job_id}/events", {"Accept": "text/event-stream"})
        yield Hostile(f"job {job_id} artifacts", "GET", f"/jobs/{job_id}/artifacts")
        yield Hostile(f"job {job_id} webhooks", "GET", f"/jobs/{job_id}/webhooks")
    for path in (
        "..", "../JOB", "..%2f..%2fsecret.key", "%2e%2e/%2e%2e/flattengpt.db", "/etc/passwd", "%2fetc%2fpasswd",
        "..%5cx", "config.json%00", "config.json%00.png", "file:%2f%2f%2fetc%2fpasswd", "~%2f.ssh%2fid_rsa", "%ff",
        "%ed%a0%80", "", ".", "a%0d%0aX-Injected:%201", "x" * 5000,
    ):  # fmt: skip
        yield Hostile(f"artifact {path[:40]}", "GET", f"/jobs/JOB/artifacts/{path}")
    for delivery in ("x", "%00", "..%2f..", "msg_" + "0" * 26, "msg_%D9%A0" + "0" * 25, "%ff", "msg_" + "a" * 26):
        yield Hostile(f"delivery {delivery[:30]}", "POST", f"/jobs/JOB/webhooks/{delivery}/replay")
    for method, path in (
        ("TRACE", "/jobs"),
        ("CONNECT", "/jobs"),
        ("PATCH", "/jobs/JOB"),
        ("PUT", "/jobs"),
        ("DELETE", "/jobs"),
        ("FOO", "/jobs"),
        ("GET", "/webhooks/secret/rotate"),
        ("POST", "/metrics"),
        ("OPTIONS", "/jobs"),
    ):
        yield Hostile(f"{method} {path}", method, path)


def _headers() -> Iterator[Hostile]:
    plain = json.dumps(REQUEST).encode()
    for key in ("", " ", "k" * 256, "k" * 60_000, "a\tb", "a\x7f", "caf\xe9", "\xff\xfe", "\x85", "a\xa0b"):
        yield Hostile(
            f"Idempotency-Key {key[:20]!a} of {len(key)}", "POST", "/jobs", JSON | {"Idempotency-Key": key}, plain
        )
    for prefer in ("wait=1" + "0" * 300, "x" * 201):
        yield Hostile(f"Prefer {prefer[:20]}", "POST", "/jobs", JSON | {"Prefer": prefer}, plain)
    for given in (
        "", "Bearer", "Bearer ", "Bearer x", "Bearer fgpt_" + "a" * 60, "Basic YTpi", "bearer", "Bearer \xff",
        "Bearer a b", "Digest x", "Bearer " + "a" * 50_000, "Bearer fgpt_aaaaaaaaaaaaaaaa_' OR 1=1 --", "Bearer null",
        "Bearer KEY0", "Bearer KEY KEY", "Token KEY", "KEY", "Bearer %00",
    ):  # fmt: skip
        yield Hostile(f"Authorization {given[:40]!a}", "GET", "/jobs", {"Authorization": given})
    yield Hostile("Content-Length", "POST", "/jobs", JSON | {"Content-Length": "2000000"}, plain)


def _tar(*entries: tuple[str, bytes], **properties: Any) -> bytes:
    """An archive of these files, each entry with these properties of tarfile's."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=properties.pop("format", tarfile.PAX_FORMAT)) as archive:
        for name, content in entries:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            for key, value in properties.items():
                setattr(entry, key, value)
            archive.addfile(entry, io.BytesIO(content) if entry.isreg() else None)
    return packed.getvalue()


def _archives() -> Iterator[Hostile]:
    """`PUT /models/NAME` with archives that want to be somewhere else, or more, than a model."""
    for name in (
        "../x", "../../etc/cron.d/x", "/etc/passwd", "/config.json", "a/../../config.json", "./../config.json", "..",
        "sub/config.json", "..\\config.json", "C:\\config.json", "C:/config.json", "\\\\host\\x", "config.json/",
        "config.json ", " config.json", "config.json.", "CONFIG.JSON", "config.json:stream", "\u202enosj.gifnoc",
        "con\u200bfig.json", "c\u0300onfig.json", "~/.ssh/authorized_keys", ".bashrc", ".upload-x", ".lock",
        "modeling_evil.py", "__init__.py", "setup.py", "pytorch_model.bin", "model.pt", "weights.pkl",
        "adapter_config.json", "model.safetensors/x", "x" * 300 + ".safetensors", "a b.safetensors", "-rf.safetensors",
        "../model.safetensors", "a;id.safetensors", "a\nb.safetensors", "tokenizer.py", "generation_config.json\n",
        "custom_generate/generate.py", "\x1b[31m.json", "nul", "%2e%2e%2fx",
    ):  # fmt: skip
        yield Hostile(f"tar {name[:40]!a}", "PUT", "/models/evil", TAR, _tar((name, b"{}")))
    for kind, what in {
        tarfile.SYMTYPE: "symlink",
        tarfile.LNKTYPE: "hard link",
        tarfile.CHRTYPE: "device",
        tarfile.BLKTYPE: "block device",
        tarfile.FIFOTYPE: "fifo",
        tarfile.DIRTYPE: "folder",
        b"Z": "unknown",
    }.items():
        yield Hostile(
            f"tar {what}",
            "PUT",
            "/models/evil",
            TAR,
            _tar(("config.json", b""), type=kind, linkname="../../secret.key"),
        )
    config = ("config.json", b"{}")
    whole = _tar(config)
    for name, packed in {
        "empty": b"",
        "zeros": bytes(10_240),
        "noise": bytes(range(256)) * 40,
        "ZIP": b"PK\x03\x04" + bytes(1000),
        "cut": whole[:700],
        "no config": _tar(("README.md", b"x")),
        "config alone": whole,
        "twice": _tar(config, config),
        "size lie": _tar(config, size=2),
        "PAX path": _tar(config, pax_headers={"path": "../../x"}),
        "PAX size": _tar(config, pax_headers={"size": "99999999999999"}),
        "PAX negative size": _tar(config, pax_headers={"size": "-1"}),
        "PAX sparse": _tar(config, pax_headers={"GNU.sparse.map": "0,1", "GNU.sparse.size": "1000000000000"}),
        "PAX link": _tar(config, pax_headers={"linkpath": "/etc/passwd"}, type=tarfile.SYMTYPE),
        "long GNU name": _tar(("../" * 2000 + "x", b"{}"), format=tarfile.GNU_FORMAT),
        "octal lie": whole[:124] + b"7" * 11 + whole[135:],
        "checksum lie": whole[:148] + b"0" * 8 + whole[156:],
        "negative size": whole[:124] + b"\xff" * 12 + whole[136:],
    }.items():
        yield Hostile(f"archive {name}", "PUT", "/models/evil", TAR, packed)
    for name, packed in {
        "bomb": gzip.compress(_tar(("tokenizer.json", bytes(30_000_000)))),
        "twice": gzip.compress(gzip.compress(whole)),
        "cut": gzip.compress(whole)[:-12],
        "CRC": gzip.compress(whole)[:-8] + bytes(8),
        "two members": gzip.compress(whole) * 2,
        "followed": gzip.compress(whole) + b"x",
        "plain": whole,
        "empty": b"",
        "header": b"\x1f\x8b",
    }.items():
        yield Hostile(f"gzip {name}", "PUT", "/models/evil", GZIP, packed)


def _weights() -> Iterator[Hostile]:
    """`PUT /models/NAME` with files whose names are right and whose contents lie."""
    llama = {
        "model_type": "llama",
        "num_hidden_layers": 1,
        "hidden_size": 8,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "vocab_size": 8,
    }
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    good = struct.pack("<Q", len(header)) + header + bytes(4)

    def lying(header: bytes, length: int | None = None) -> bytes:
        return struct.pack("<Q", len(header) if length is None else length) + header + bytes(8)

    def tensor(**changes: Any) -> bytes:
        return lying(json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changes}).encode())

    for name, weights in {
        "empty": b"",
        "text": b"hello",
        "pickle": b"\x80\x04cos\nsystem\n(S'id'\ntR.",
        "huge header": lying(b"{}", 2**63),
        "negative header": lying(b"{}", 2**64 - 1),
        "long header": lying(b"{}", 200_000_000),
        "list header": lying(b"[]"),
        "deep header": lying(b"[" * 100_000),
        "duplicate": lying(b'{"a":1,"a":2}'),
        "outside": tensor(data_offsets=[0, 2**62]),
        "backwards": tensor(data_offsets=[4, 0]),
        "negative": tensor(data_offsets=[-4, 0]),
        "overflow": tensor(shape=[2**32, 2**32]),
        "negative shape": tensor(shape=[-1]),
        "dtype": tensor(dtype="PICKLE"),
        "unnamed layers": good,
    }.items():
        yield Hostile(
            f"weights {name}",
            "PUT",
            "/models/evil",
            TAR,
            _tar(("config.json", json.dumps(llama).encode()), ("model.safetensors", weights)),
        )
    for name, config in {
        "code": llama | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}},
        "family": llama | {"model_type": "evil"},
        "quantised": llama | {"quantization_config": {"quant_method": "evil"}},
        "no layers": llama | {"num_hidden_layers": None},
        "layers": llama | {"num_hidden_layers": 10**30},
        "infinite": llama | {"num_hidden_layers": 1e999},
        "list": [],
        "model type list": llama | {"model_type": ["llama"]},
        "architectures": llama | {"model_type": "llama", "num_hidden_layers": -1},
    }.items():
        yield Hostile(
            f"config {name}",
            "PUT",
            "/models/evil",
            TAR,
            _tar(("config.json", json.dumps(config).encode()), ("model.safetensors", good)),
        )
    for name, content in {
        "deep": b"[" * 100_000,
        "no UTF-8": b'{"a": "\xff"}',
        "UTF-16": "{}".encode("utf-16"),
        "long number": b'{"num_hidden_layers": 1' + b"0" * 5000 + b"}",
        "NUL": b"\0",
        "empty": b"",
    }.items():
        yield Hostile(
            f"config {name}", "PUT", "/models/evil", TAR, _tar(("config.json", content), ("model.safetensors", good))
        )
    for name, weight_map in {
        "path": {"a": "../../secret.key"},
        "absolute": {"a": "/etc/passwd"},
        "list": [],
        "number": {"a": 1},
    }.items():
        index = json.dumps({"weight_map": weight_map}).encode()
        yield Hostile(
            f"index {name}",
            "PUT",
            "/models/evil",
            TAR,
            _tar(
                ("config.json", json.dumps(llama).encode()),
                ("model.safetensors", good),
                ("model.safetensors.index.json", index),
            ),
        )
    for name, content in {
        "empty": b"",
        "magic": b"GGUX" + bytes(100),
        "version": b"GGUF" + struct.pack("<IQQ", 99, 0, 0),
        "no tensors": b"GGUF" + struct.pack("<IQQ", 3, 0, 0),
        "tensors": b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0) + bytes(64),
        "pairs": b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63) + bytes(64),
        "string": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62) + bytes(64),
        "array": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 9, 2**60) + bytes(64),
        "cut": b"GGUF\x03",
    }.items():
        yield Hostile(f"gguf {name}", "PUT", "/models/evil.gguf", GGUF, content)


def _uploads() -> Iterator[Hostile]:
    """Uploads under names that are none, as what they are not, and texts that are none."""
    whole = _tar(("config.json", b"{}"))
    names = (
        "..",
        "%2e%2e",
        ".hidden",
        "-rf",
        "a%2fb",
        "a%5cb",
        "a%00",
        "a%0d%0aX-Injected:%201",
        "%F0%9F%94%8D",
        "%ff",
        "a%20b",
        "a" * 129,
        "$(id)",
        "%2e%2e%2f%2e%2e%2fx",
        "~",
        "tiny%0a",
    )
    for name in names:
        yield Hostile(f"model named {name[:30]}", "PUT", f"/models/{name}", TAR, whole)
        yield Hostile(f"text named {name[:30]}", "PUT", f"/datasets/{name}", TEXT, b"text")
    for name in names[:8]:
        yield Hostile(f"remove the model {name[:30]}", "DELETE", f"/models/{name}")
        yield Hostile(f"show the text {name[:30]}", "GET", f"/datasets/{name}")
    for name, kind in (("evil.gguf", TAR), ("evil", GGUF)):
        yield Hostile(f"model {name} as {kind['Content-Type']}", "PUT", f"/models/{name}", kind, whole)
    for kind in ("", "application/zip", "application/x-pickle", "text/html", "multipart/form-data; boundary=x", "*/*"):
        yield Hostile(f"model as {kind!a}", "PUT", "/models/evil", {"Content-Type": kind}, whole)
        yield Hostile(f"text as {kind!a}", "PUT", "/datasets/evil", {"Content-Type": kind}, b"text")
    for coding in ("gzip", "br", "x", "identity, gzip"):
        yield Hostile(f"text in {coding}", "PUT", "/datasets/evil", TEXT | {"Content-Encoding": coding}, b"text")
    for name, body in {
        "empty": b"",
        "blank": b" \n\t\r\n",
        "no UTF-8": b"text\xff",
        "UTF-16": "text".encode("utf-16"),
        "cut letter": "é".encode()[:1],
        "surrogate": b"\xed\xa0\x80",
    }.items():
        yield Hostile(f"text {name}", "PUT", "/datasets/evil", TEXT, body)
    for name, body in {
        "empty": b"",
        "blank": b"\n\n",
        "no JSON": b"text",
        "list": b"[]",
        "null": b"null",
        "no text": b'{"a": "x"}',
        "number": b'{"text": 1}',
        "blank texts": b'{"text": " "}\n{"text": ""}',
        "second line": b'{"text": "x"}\n{"text": }',
        "deep": b'{"text": ' + b"[" * 100_000,
        "long number": b'{"text": "x", "n": 1' + b"0" * 5000 + b"}",
        "surrogate": b'{"text": "\\ud800"}',
        "two on a line": b'{"text": "x"}{"text": "y"}',
    }.items():  # fmt: skip
        yield Hostile(f"lines {name}", "PUT", "/datasets/evil", LINES, body)
    yield Hostile("text too large", "PUT", "/datasets/evil", TEXT, b"x" * 200_001)
    yield Hostile("model too large", "PUT", "/models/evil", TAR | {"Content-Length": "40000000"})
