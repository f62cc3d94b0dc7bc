"""Texts over HTTP: uploaded whole or not at all, checked while they come in, named by jobs, removed when free."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from api import uploads
from flattengpt_core.texts import load_text
from jobs import text_store
from jobs.settings import Settings
from jobs.store import JobStore
from tests.api.conftest import REQUEST, on_sqlite, problem, submitted
from tests.api.raw_upload import cut_off, eventually, left_in, stalled
from tests.api.test_jobs import taken
from tests.api.test_service import opened

PLAIN = {"Content-Type": "text/plain"}
LINES = {"Content-Type": "application/x-ndjson"}
TEXT = "Übung macht den Meister.\n".encode()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings that take small texts only."""
    return settings.model_copy(update={"max_dataset_bytes": 2_000_000, "max_body_bytes": 1000})


@pytest.fixture
def folder(settings: Settings) -> Path:
    return settings.texts_dir


def put(api: httpx.Client, name: str, content: Any, headers: dict[str, str] = PLAIN) -> httpx.Response:
    return api.put(f"/datasets/{name}", content=content, headers=headers)


def calibrated_on(dataset: str, *reported: str) -> dict[str, Any]:
    return {"calibration": {"dataset": dataset}, "evaluation": {"perplexity": list(reported or ["python-docs"])}}


@on_sqlite
def test_a_text_comes_and_goes(api: TestClient, folder: Path) -> None:
    made = put(api, "my-text", TEXT, {"Content-Type": "Text/Plain; charset=utf-8"})
    assert made.status_code == 201, made.text
    assert made.headers["location"] == "/datasets/my-text"
    entry = made.json()
    created = entry.pop("created_at")
    assert entry == {"name": "my-text", "dataset": "local:my-text", "format": "txt", "size": len(TEXT)}
    assert api.get("/datasets/my-text").json() == entry | {"created_at": created}
    assert api.get("/datasets").json() == {"datasets": [entry | {"created_at": created}]}
    assert load_text("local:my-text", "calibration", folder).encode() == TEXT
    assert left_in(folder) == ["my-text.txt"]
    assert api.delete("/datasets/my-text").status_code == 204
    assert left_in(folder) == []
    assert api.get("/datasets").json() == {"datasets": []}
    for answer in (api.get("/datasets/my-text"), api.delete("/datasets/my-text")):
        problem(answer, 404, "not_stored")


@on_sqlite
def test_json_lines_are_read_as_the_core_reads_them(api: TestClient, folder: Path) -> None:
    texts = ["one", "zwei\u2028\x85", "", "three\n"]
    body = "\n".join(json.dumps({"text": text, "n": 1}, ensure_ascii=False) for text in texts)
    for kind in ("application/jsonl", "application/x-ndjson"):
        name = kind.rpartition("/")[2]
        assert put(api, name, f"\r\n{body}\n\n".encode(), {"Content-Type": kind}).status_code == 201
        assert load_text(f"local:{name}", "evaluation", folder) == "\n\n".join(texts)
    assert [entry["format"] for entry in api.get("/datasets").json()["datasets"]] == ["jsonl", "jsonl"]


@on_sqlite
def test_the_same_again_changes_nothing_and_another_is_refused(api: TestClient, folder: Path) -> None:
    first = put(api, "a", TEXT).json()
    again = put(api, "a", TEXT)
    assert (again.status_code, again.json()) == (200, first)
    problem(put(api, "a", TEXT + b"more"), 409, "name_taken", "name")
    problem(put(api, "a", b'{"text": "a"}', LINES), 409, "name_taken", "name")
    assert left_in(folder) == ["a.txt"]
    assert (folder / "a.txt").read_bytes() == TEXT


@on_sqlite
@pytest.mark.parametrize(
    ("body", "headers", "said"),
    [
        (b"", PLAIN, "empty"),
        (b" \n\t\xc2\xa0\n", PLAIN, "empty"),
        (b"good \xff\xfe bad", PLAIN, "not UTF-8 at about byte 5"),
        (b"cut in a letter \xc3", PLAIN, "not UTF-8"),
        ("text".encode("utf-16"), PLAIN, "not UTF-8"),
        (b"", LINES, "empty"),
        (b"\n\n", LINES, "empty"),
        (b'{"text": ""}\n{"text": " "}', LINES, "empty"),
        (b'{"text": "a"}\n{"text": 3}', LINES, "Line 2 "),
        (b'{"text": "a"}\n\n{"txt": "b"}', LINES, "Line 3 "),
        (b'{"text": "a"}\n["text"]', LINES, "Line 2 "),
        (b'"text"', LINES, "Line 1 "),
        (b"null", LINES, "Line 1 "),
        (b"plain words", LINES, "Line 1 "),
        (b'{"text": "a"', LINES, "Line 1 "),
        (b'\xef\xbb\xbf{"text": "a"}', LINES, "Line 1 "),
        (b'{"text": "\\ud800"}', LINES, "Line 1 "),
        (b'{"text": "\xff"}', LINES, "not UTF-8"),
        (b"[" * 100_000, LINES, "Line 1 "),
    ],
)
def test_what_is_no_text_leaves_nothing(
    api: TestClient, folder: Path, body: bytes, headers: dict[str, str], said: str
) -> None:
    detail = problem(put(api, "bad", body, headers), 422, "upload_refused", "body")["detail"]
    assert said in detail
    assert len(detail) < 600
    assert left_in(folder) == []


@on_sqlite
def test_a_line_without_an_end(api: TestClient, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_store, "MAX_LINE", 1000)
    body = problem(put(api, "long", b'{"text": "' + b"x" * 200_000 + b'"}', LINES), 422, "upload_refused", "body")
    assert "Line 1 is longer" in body["detail"]
    assert left_in(folder) == []


@on_sqlite
def test_a_letter_may_come_in_two_blocks(live: httpx.Client, folder: Path) -> None:
    def blocks() -> Iterator[bytes]:
        for byte in TEXT:
            yield bytes([byte])

    assert put(live, "slow", blocks()).status_code == 201
    assert (folder / "slow.txt").read_bytes() == TEXT


@on_sqlite
@pytest.mark.parametrize("kind", ["", "application/json", "text/html", "application/octet-stream", "text"])
def test_a_body_of_another_kind(api: TestClient, folder: Path, kind: str) -> None:
    body = problem(put(api, "a", TEXT, {"Content-Type": kind}), 415, "unsupported_media_type")
    assert "text/plain" in body["detail"]
    problem(put(api, "a", TEXT, PLAIN | {"Content-Encoding": "gzip"}), 415, "unsupported_media_type")
    assert left_in(folder) == []


@on_sqlite
def test_a_text_that_is_too_large(live: httpx.Client, folder: Path) -> None:
    """Also one that does not say so; the other addresses keep their own limit."""
    problem(put(live, "big", b"x" * 2_000_001), 413, "content_too_large")
    problem(put(live, "big", (b"x" * 100_000 for _ in range(21))), 413, "content_too_large")
    assert eventually(lambda: left_in(folder) == [])
    assert put(live, "big", b"x" * 2_000_000).status_code == 201
    problem(live.post("/jobs", content=b" " * 1001), 413, "content_too_large")
    problem(live.put("/datasets/a/b", content=b" " * 1001), 404, "not_found")


@on_sqlite
def test_a_body_that_is_cut_off_leaves_nothing(live: httpx.Client, folder: Path) -> None:
    cut_off(live, "/datasets/cut", "text/plain", TEXT * 1000, announced=len(TEXT) * 1000 + 1)
    assert eventually(lambda: folder.exists() and left_in(folder) == [])
    assert live.get("/datasets").json() == {"datasets": []}
    cut_off(live, "/datasets/short", "text/plain", TEXT * 2, announced=len(TEXT))
    assert eventually(lambda: left_in(folder) == ["short.txt"])
    assert (folder / "short.txt").read_bytes() == TEXT


@on_sqlite
def test_a_client_that_falls_silent(live: httpx.Client, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "SILENCE_SECONDS", 0.2)
    answer = stalled(live, "/datasets/slow", "text/plain", TEXT, announced=len(TEXT) + 1)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert left_in(folder) == []


@on_sqlite
@pytest.mark.parametrize(
    "name", [".hidden", "-a", "a%00", "a%20b", "%C3%BC", "a" * 129, "..", "%2e%2e", "a+b", "a:b", "a%0a", "~", "a%5cb"]
)
def test_names_that_are_none(api: TestClient, folder: Path, name: str) -> None:
    answer = put(api, name, TEXT)
    if answer.status_code != 404:  # the client tidies some paths up
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert left_in(folder) == []
    for answer in (put(api, "..%2fescaped", TEXT), put(api, "a%2fb", TEXT)):
        problem(answer, 404, "not_found")
    assert left_in(folder) == []
    assert not (folder.parent / "escaped.txt").exists()


@on_sqlite
def test_a_full_disk(api: TestClient, settings: Settings, store: JobStore, folder: Path) -> None:
    with opened(settings.model_copy(update={"min_free_disk_bytes": 2**60})) as full:
        body = problem(put(full, "a", TEXT), 507, "no_room")
        assert body["retryable"]
        assert "FLATTENGPT_MIN_FREE_DISK_BYTES" in body["detail"]
    assert left_in(folder) == []
    put(api, "a", TEXT)
    with opened(settings.model_copy(update={"min_free_disk_bytes": 2**60})) as full:
        assert full.delete("/datasets/a").status_code == 204, "removing makes room"


@on_sqlite
def test_a_job_names_texts(api: TestClient, settings: Settings) -> None:
    problem(
        api.post("/jobs", json=REQUEST | calibrated_on("local:one")),
        422,
        "calibration_not_found",
        "calibration.dataset",
    )
    put(api, "one", TEXT)
    put(api, "same", TEXT)
    put(api, "two", TEXT * 2)
    submitted(api, **calibrated_on("python-docs+local:one+local:two"))
    submitted(api, **calibrated_on("local:one", "local:two", "python-docs"))
    for reported in ("local:one", "local:same"):
        answer = api.post("/jobs", json=REQUEST | calibrated_on("python-docs+local:one", reported))
        problem(answer, 422, "invalid_request", "evaluation.perplexity")
    for missing in ("local:three", "local:one.txt", "local:.one", "local:", "local:one:two"):
        answer = api.post("/jobs", json=REQUEST | calibrated_on("local:one", missing))
        problem(answer, 422, "calibration_not_found", "evaluation.perplexity")
    for path in ("local:../one", "local:/etc/passwd"):
        answer = api.post("/jobs", json=REQUEST | calibrated_on(path))
        problem(answer, 422, "invalid_request", "calibration.dataset")


@on_sqlite
def test_a_link_that_leads_out_is_no_text(api: TestClient, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    folder.mkdir()
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    answer = api.post("/jobs", json=REQUEST | calibrated_on("local:link"))
    problem(answer, 422, "calibration_not_found", "calibration.dataset")
    assert api.get("/datasets").json() == {"datasets": []}


def test_a_text_stays_while_a_job_needs_it(api: TestClient, store: JobStore) -> None:
    for name in ("one", "two", "three", "on", "o_e"):
        put(api, name, name.encode())
    calibrating = submitted(api, **calibrated_on("python-docs+local:one"))
    reporting = submitted(api, **calibrated_on("python-docs", "local:two"))
    submitted(api, labels={"text": "local:three"})
    for name in ("three", "on", "o_e"):
        assert api.delete(f"/datasets/{name}").status_code == 204, name
    problem(api.delete("/datasets/one"), 409, "in_use", "name")
    store.succeed(taken(store, calibrating))
    assert api.delete("/datasets/one").status_code == 204
    taken(store, reporting)
    api.post(f"/jobs/{reporting}/cancel")
    problem(api.delete("/datasets/two"), 409, "in_use", "name")  # it is not cancelled yet
