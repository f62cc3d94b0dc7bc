"""Models over HTTP: unpacked and checked aside, never run, on the shelf whole or not at all, removed when free."""

import gzip
import io
import json
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from jobs import archive, model_files
from jobs.settings import Settings
from jobs.store import JobStore
from tests.api.conftest import REQUEST, on_sqlite, problem, submitted
from tests.api.raw_upload import cut_off, eventually, left_in
from tests.api.test_jobs import taken
from tests.api.test_service import opened

TAR, GZIP, GGUF = "application/x-tar", "application/gzip", "application/octet-stream"
MAX = 3_000_000
SPECIAL = {
    tarfile.DIRTYPE: "a folder",
    tarfile.SYMTYPE: "a link",
    tarfile.LNKTYPE: "a link",
    tarfile.CHRTYPE: "no file",
    tarfile.BLKTYPE: "no file",
    tarfile.FIFOTYPE: "no file",
    tarfile.CONTTYPE: "no file",
}

Files = dict[str, bytes]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings that take small models only."""
    return settings.model_copy(update={"max_model_bytes": MAX})


@pytest.fixture(scope="session")
def files(tiny: Path) -> Files:
    """The files of a checkpoint that is right."""
    return {file.name: file.read_bytes() for file in tiny.iterdir()}


@pytest.fixture
def left(settings: Settings) -> Callable[[], list[str]]:
    """What is in the model folder beside `local:tiny`."""
    return lambda: [name for name in left_in(settings.models_dir) if name != "tiny"]


def put(api: httpx.Client, name: str, content: Any, kind: str = TAR) -> httpx.Response:
    return api.put(f"/models/{name}", content=content, headers={"Content-Type": kind})


def tar(files: Files, *special: tarfile.TarInfo, form: int = tarfile.PAX_FORMAT) -> bytes:
    """An archive of these files, and of entries that have no content."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=form) as writer:
        for name, content in files.items():
            writer.addfile(entry(name, size=len(content)), io.BytesIO(content))
        for info in special:
            writer.addfile(info)
    return packed.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, *, size: int = 0, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, target
    return info


def header_only(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """An entry that tells a size and has nothing."""
    return entry(name, kind, size=size).tobuf(tarfile.GNU_FORMAT)


def packed_gguf(file: Path, *, architecture: str = "llama") -> bytes:
    """A GGUF file of a few tensors."""
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_block_count(6)
    writer.add_token_list(["a", "b"])
    writer.add_tensor("token_embd.weight", np.zeros((4, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file.read_bytes()


# What is taken


@on_sqlite
@pytest.mark.parametrize(
    ("form", "kind"), [(tarfile.PAX_FORMAT, TAR), (tarfile.GNU_FORMAT, GZIP), (tarfile.USTAR_FORMAT, TAR)]
)
def test_a_model_comes_and_goes(
    api: TestClient, settings: Settings, files: Files, left: Callable[[], list[str]], form: int, kind: str
) -> None:
    named = {f"./{name}": content for name, content in files.items()}
    body = tar(named, entry("./", tarfile.DIRTYPE), form=form)
    made = put(api, "my-model", gzip.compress(body) if kind == GZIP else body, kind)
    assert made.status_code == 201, made.text
    assert made.headers["location"] == "/models/my-model"
    found = made.json()
    assert found.pop("parameters") > 1000
    assert found.pop("created_at")
    assert found == {
        "name": "my-model", "model": "local:my-model", "size": sum(map(len, files.values())), "format": "safetensors",
        "family": "LlamaForCausalLM", "layers": 6, "problem": None,
    }  # fmt: skip
    folder = settings.models_dir / "my-model"
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == files
    assert left() == ["my-model"]
    assert [entry["name"] for entry in api.get("/models").json()["models"]] == ["my-model", "tiny"]
    assert api.get("/models/my-model").json() == made.json()
    submitted(api, model="local:tiny")
    assert api.delete("/models/my-model").status_code == 204
    assert left() == []
    for answer in (api.get("/models/my-model"), api.delete("/models/my-model")):
        problem(answer, 404, "not_stored")


@on_sqlite
def test_a_gguf_file_comes_and_goes(api: TestClient, tmp_path: Path, left: Callable[[], list[str]]) -> None:
    body = packed_gguf(tmp_path / "made.gguf")
    made = put(api, "small.gguf", body, GGUF)
    assert made.status_code == 201, made.text
    found = made.json()
    assert (found["format"], found["family"], found["layers"]) == ("gguf", "LlamaForCausalLM", 6)
    assert (found["size"], found["parameters"]) == (len(body), 32)
    submitted(api, model="local:small.gguf")
    assert put(api, "small.gguf", body, GGUF).status_code == 200
    problem(put(api, "small.gguf", body + b"\0", GGUF), 409, "name_taken", "name")
    problem(put(api, "small", body, GGUF), 422, "upload_refused", "name")
    problem(put(api, "folder.gguf", tar({}), TAR), 422, "upload_refused", "name")
    problem(api.delete("/models/small.gguf"), 409, "in_use", "name")
    assert left() == ["small.gguf"]


@on_sqlite
def test_the_same_again_changes_nothing_and_another_is_refused(
    api: TestClient, settings: Settings, files: Files
) -> None:
    first = put(api, "a", tar(files)).json()
    again = put(api, "a", gzip.compress(tar(dict(reversed(files.items())))), GZIP)
    assert (again.status_code, again.json()) == (200, first)
    for other in (files | {"README.md": b"# a"}, files | {"merges.txt": b"x"}):
        problem(put(api, "a", tar(other)), 409, "name_taken", "name")
    fewer = {name: content for name, content in files.items() if name != "generation_config.json"}
    problem(put(api, "a", tar(fewer)), 409, "name_taken", "name")
    assert {file.name: file.read_bytes() for file in (settings.models_dir / "a").iterdir()} == files


@on_sqlite
def test_models_that_somebody_put_there_are_listed_with_what_is_wrong(api: TestClient, settings: Settings) -> None:
    (settings.models_dir / "empty").mkdir()
    (settings.models_dir / "no name").mkdir()
    (settings.models_dir / "out").symlink_to("/etc")
    listed = {entry["name"]: entry for entry in api.get("/models").json()["models"]}
    assert listed.keys() == {"empty", "tiny"}
    assert listed["empty"]["layers"] is None
    assert "no config.json" in listed["empty"]["problem"]


def test_a_model_stays_while_a_job_needs_it(api: TestClient, store: JobStore) -> None:
    job_id = submitted(api)
    problem(api.delete("/models/tiny"), 409, "in_use", "name")
    lease = taken(store, job_id)
    problem(api.delete("/models/tiny"), 409, "in_use", "name")
    store.succeed(lease)
    assert api.delete("/models/tiny").status_code == 204
    problem(api.post("/jobs", json=REQUEST), 422, "model_not_found", "model")


# What is not


@on_sqlite
@pytest.mark.parametrize(
    "name",
    ["../x", "../../flattengpt.db", "/etc/passwd", "a/config.json", "..", "...", "\\config.json", "C:\\x.json",
     ".config.json", "config.json ", "Config.json", "config\n.json", "modeling_custom.py", "pytorch_model.bin",
     "model.pt", "weights.pkl", "adapter_config.json", "model.gguf", "._config.json", "ünter.safetensors",
     "../model.safetensors", ".safetensors", "a\u202ebad.safetensors", "x" * 200 + ".safetensors"],
)  # fmt: skip
def test_files_that_no_model_has(
    api: TestClient, settings: Settings, files: Files, left: Callable[[], list[str]], name: str
) -> None:
    before = sorted(settings.data_dir.rglob("*"))
    body = problem(put(api, "bad", tar(files | {name: b"{}"})), 422, "upload_refused", name)
    assert "is not taken" in body["detail"]
    assert left() == []
    assert [path for path in settings.data_dir.rglob("*") if path not in before and path.name != ".lock"] == []


@on_sqlite
def test_pickles_are_told_of(api: TestClient, files: Files) -> None:
    body = problem(
        put(api, "bad", tar({"pytorch_model.bin": b"\x80"} | files)), 422, "upload_refused", "pytorch_model.bin"
    )
    assert "convert them first" in body["detail"]


@on_sqlite
@pytest.mark.parametrize("kind", SPECIAL, ids=lambda kind: kind.decode())
def test_entries_that_are_no_files(api: TestClient, files: Files, left: Callable[[], list[str]], kind: bytes) -> None:
    for name, target in (("config.json", "/etc/passwd"), ("merges.txt", "config.json"), ("d", "../x")):
        body = tar({n: c for n, c in files.items() if n != name}, entry(name, kind, target=target))
        assert SPECIAL[kind] in problem(put(api, "bad", body), 422, "upload_refused", name)["detail"]
    assert left() == []


@on_sqlite
def test_a_file_with_holes(api: TestClient, left: Callable[[], list[str]]) -> None:
    """GNU tar's sparse files: a few bytes that would come to many."""
    sparse = entry("model.safetensors", tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT)
    pax = entry("model.safetensors", size=0)
    pax.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(2**40), "GNU.sparse.numblocks": "1"}
    for body in (sparse + bytes(1024), pax.tobuf(tarfile.PAX_FORMAT) + bytes(1024)):
        problem(put(api, "bad", body), 422, "upload_refused", "model.safetensors")
    assert left() == []


@on_sqlite
def test_a_name_that_comes_twice(api: TestClient, files: Files, left: Callable[[], list[str]]) -> None:
    for name in ("config.json", "./config.json"):
        body = tar(files)[:-1024].rstrip(b"\0")
        body += bytes(-len(body) % 512) + tar({name: files["config.json"]})
        problem(put(api, "bad", body), 422, "upload_refused", "config.json")
    assert left() == []


@on_sqlite
def test_archives_that_grow(api: TestClient, files: Files, left: Callable[[], list[str]]) -> None:
    bomb = gzip.compress(tar({"model.safetensors": bytes(40_000_000)}))
    assert len(bomb) < 100_000
    problem(put(api, "bomb", bomb, GZIP), 413, "content_too_large")
    after = gzip.compress(tar(files) + bytes(40_000_000))
    problem(put(api, "bomb", after, GZIP), 413, "content_too_large")
    told = header_only("model.safetensors", 2**45)
    problem(put(api, "bomb", told + bytes(4096)), 413, "content_too_large")
    problem(put(api, "bomb", gzip.compress(gzip.compress(bytes(9_000_000))), GZIP), 422, "upload_refused", "body")
    assert left() == []


@on_sqlite
def test_headers_that_grow(api: TestClient, left: Callable[[], list[str]]) -> None:
    """tarfile holds long names and extended headers in memory."""
    for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE):
        body = header_only("long", 2_500_000, kind) + bytes(2_500_000)
        answer = problem(put(api, "bad", gzip.compress(body), GZIP), 422, "upload_refused", "body")
        assert "a header that is too long" in answer["detail"]
    chain = (header_only("x", 0, tarfile.XHDTYPE) * 1500) + bytes(1024)
    problem(put(api, "bad", gzip.compress(chain), GZIP), 422, "upload_refused", "body")
    assert left() == []


@on_sqlite
def test_too_many_entries(api: TestClient, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_ENTRIES", 20)
    folders = [entry("./", tarfile.DIRTYPE) for _ in range(21 - len(files))]
    problem(put(api, "bad", tar(files, *folders)), 422, "upload_refused", "body")
    assert put(api, "good", tar(files, *folders[1:])).status_code == 201


@on_sqlite
def test_archives_that_are_damaged(api: TestClient, files: Files, left: Callable[[], list[str]]) -> None:
    good = tar(files)
    end = len(good.rstrip(b"\0"))
    last = end + -end % 512  # where the last file ends, and the archive could be thought to
    first = 512 + len(next(iter(files.values())))
    second = first + -first % 512
    flipped = good[: second + 5] + b"\xff" + good[second + 6 :]  # the second header's checksum is wrong
    packed = gzip.compress(good)
    for body in (
        b"",
        bytes(100),
        b"no archive" * 100,
        good[:300],
        good[: first - 5],
        good[:second],
        good[:last],
        flipped,
    ):
        answer = problem(put(api, "bad", body), 422, "upload_refused", "body")
        assert "damaged" in answer["detail"], body[:20]
    for body in (b"", good, packed[:-1], packed[: len(packed) // 2], packed[:-6] + b"\0" * 6, packed + packed):
        problem(put(api, "bad", body, GZIP), 422, "upload_refused", "body")
    assert left() == []


@on_sqlite
def test_an_empty_archive(api: TestClient, left: Callable[[], list[str]]) -> None:
    for body in (tar({}), bytes(10240), tar({}, entry("./", tarfile.DIRTYPE))):
        assert "no config.json" in problem(put(api, "bad", body), 422, "model_not_found", "model")["detail"]
    assert left() == []


def changed(files: Files, name: str, **entries: Any) -> Files:
    return files | {name: json.dumps(json.loads(files.get(name, b"{}")) | entries).encode()}


@on_sqlite
@pytest.mark.parametrize(
    ("entries", "code", "field", "said"),
    [
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, "unsupported_model", "model", "'gpt2'"),
        ({"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, "upload_refused", "config.json", "code of its own"),
        ({"quantization_config": {"quant_method": "gptq"}}, "unsupported_model", "model", "quantised (gptq)"),
        ({"num_hidden_layers": 7}, "unsupported_model", "model", "'bad' does not fit its config.json"),
        ({"num_hidden_layers": 10**12}, "unsupported_model", "model", "'bad' does not fit its config.json"),
        ({"hidden_size": -1}, "unsupported_model", "model", "hidden_size"),
    ],
)
def test_configs_that_cannot_be_used(
    api: TestClient,
    files: Files,
    left: Callable[[], list[str]],
    entries: dict[str, Any],
    code: str,
    field: str,
    said: str,
) -> None:
    body = problem(put(api, "bad", tar(changed(files, "config.json", **entries))), 422, code, field)
    assert said in body["detail"]
    assert left() == []


@on_sqlite
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json", model_files.INDEX])
def test_json_files_that_are_none(api: TestClient, files: Files, left: Callable[[], list[str]], name: str) -> None:
    for content in (b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"auto_map": {"AutoTokenizer": ["evil.T", null]}}'):
        problem(put(api, "bad", tar(files | {name: content})), 422, "upload_refused", name)
    assert left() == []


@on_sqlite
def test_small_files_that_are_large(api: TestClient, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "_READ_HERE_BYTES", 100_000)
    large = b'{"a": "' + b"x" * 100_000 + b'"}'
    problem(put(api, "bad", tar(files | {"config.json": large})), 422, "upload_refused", "config.json")
    assert put(api, "good", tar(files | {"vocab.json": large})).status_code == 201


@on_sqlite
def test_an_index_leads_to_files_of_the_archive_only(api: TestClient, files: Files) -> None:
    weights = files["model.safetensors"]
    rest = {name: content for name, content in files.items() if name != "model.safetensors"}
    part = "model-00001-of-00001.safetensors"
    problem(put(api, "bad", tar(rest | {part: weights})), 422, "upload_refused", part)
    for index in ({}, {"weight_map": []}, {"weight_map": {"a": 1}}, {"weight_map": {"a": "../tiny/model.safetensors"}}):
        body = tar(rest | {part: weights, model_files.INDEX: json.dumps(index).encode()})
        problem(put(api, "bad", body), 422, "upload_refused", model_files.INDEX)
    index = json.dumps({"weight_map": {"model.norm.weight": part}}).encode()
    assert put(api, "good", tar(rest | {part: weights, model_files.INDEX: index})).status_code == 201


def safetensors(header: Any, data: bytes = b"", *, size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


@on_sqlite
@pytest.mark.parametrize(
    "weights",
    [
        b"",
        b"\x80\x04\x95pickle",
        safetensors(b"{}", size=2**63),
        safetensors(b"{}", size=2**40),
        safetensors(b"[" * 5000),
        safetensors({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, bytes(8)),
        safetensors({"a": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]}}, bytes(24)),
        safetensors({"a": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 16]}}, bytes(16)),
        safetensors({"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}}, bytes(16)),
        safetensors({"a": {"dtype": "X", "shape": [4], "data_offsets": [0, 16]}}, bytes(16)),
    ],
)
def test_weights_whose_header_lies(
    api: TestClient, files: Files, left: Callable[[], list[str]], weights: bytes
) -> None:
    body = problem(put(api, "bad", tar(files | {"model.safetensors": weights})), 422, "unsupported_model", "model")
    assert "model.safetensors is not a valid safetensors file" in body["detail"]
    assert left() == []


@on_sqlite
def test_weights_that_are_cut_off_or_missing(api: TestClient, files: Files, left: Callable[[], list[str]]) -> None:
    half = files | {"model.safetensors": files["model.safetensors"][:-1]}
    none = {name: content for name, content in files.items() if name != "model.safetensors"}
    for content in (half, none):
        problem(put(api, "bad", tar(content)), 422, "unsupported_model", "model")
    assert left() == []


@on_sqlite
def test_gguf_files_that_lie(api: TestClient, tmp_path: Path, left: Callable[[], list[str]]) -> None:
    good = packed_gguf(tmp_path / "a.gguf")
    head = b"GGUF" + struct.pack("<I", 3)
    array = struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 4, 2**40)
    bodies = {
        "empty": b"",
        "other": b"MZ" * 100,
        "old": b"GGUF" + struct.pack("<I", 1) + bytes(16),
        "cut-header": good[:60],
        "cut-data": good[:-64],
        "many-tensors": head + struct.pack("<QQ", 2**60, 0),
        "many-entries": head + struct.pack("<QQ", 0, 2**60),
        "long-array": head + struct.pack("<QQ", 0, 1) + array + bytes(100),
        "array-past-the-end": head + struct.pack("<QQ", 0, 1) + array[:-8] + struct.pack("<Q", 1000),
        "long-key": head + struct.pack("<QQQ", 0, 1, 2**62),
        "nothing-said": head + struct.pack("<QQ", 0, 0),
        "gpt2": packed_gguf(tmp_path / "b.gguf", architecture="gpt2"),
    }
    for name, body in bodies.items():
        problem(put(api, f"{name}.gguf", body, GGUF), 422, "unsupported_model", "model")
    assert left() == []


@on_sqlite
def test_plain_bytes_are_told_by_their_start(api: TestClient, files: Files, left: Callable[[], list[str]]) -> None:
    """For clients that know no other way to send a file."""
    assert put(api, "plain", tar(files), GGUF).status_code == 201
    assert put(api, "packed", gzip.compress(tar(files)), GGUF).status_code == 201
    problem(put(api, "wrong", b"GGUF" + bytes(100), GGUF), 422, "upload_refused", "name")
    problem(put(api, "wrong.gguf", tar(files), GGUF), 422, "unsupported_model", "model")
    assert left() == ["packed", "plain"]


@on_sqlite
@pytest.mark.parametrize("kind", ["", "application/json", "application/zip", "multipart/form-data; boundary=a"])
def test_a_body_of_another_kind(api: TestClient, files: Files, left: Callable[[], list[str]], kind: str) -> None:
    assert "application/x-tar" in problem(put(api, "a", tar(files), kind), 415, "unsupported_media_type")["detail"]
    assert left() == []


@on_sqlite
@pytest.mark.parametrize("name", [".hidden", "-a", "a%00", "%C3%BC", "a" * 129, "a:b", "a%5cb", "a%2fb"])
def test_names_that_are_none(api: TestClient, files: Files, left: Callable[[], list[str]], name: str) -> None:
    answer = put(api, name, tar(files))
    assert answer.status_code in (404, 422)
    assert answer.json()["code"] in ("not_found", "invalid_request")
    assert left() == []


@on_sqlite
def test_a_model_that_is_too_large(live: httpx.Client, left: Callable[[], list[str]]) -> None:
    problem(put(live, "big", bytes(MAX + 1)), 413, "content_too_large")
    problem(put(live, "big", (b"\1" * 100_000 for _ in range(MAX // 100_000 + 1)), GZIP), 422, "upload_refused", "body")
    problem(put(live, "big.gguf", (b"\1" * 100_000 for _ in range(MAX // 100_000 + 1)), GGUF), 413, "content_too_large")
    assert eventually(lambda: left() == [])


@on_sqlite
def test_a_client_that_is_still_sending_gets_its_answer(live: httpx.Client) -> None:
    """And the connection goes on."""
    body = tar({"run.py": b"", "model.safetensors": bytes(MAX - 20_000)})
    for _ in range(5):
        problem(put(live, "bad", body), 422, "upload_refused", "run.py")


@on_sqlite
def test_a_body_that_is_cut_off_leaves_nothing(live: httpx.Client, files: Files, left: Callable[[], list[str]]) -> None:
    body = tar(files)
    cut_off(live, "/models/cut", TAR, body[: len(body) // 2], announced=len(body))
    cut_off(live, "/models/cut.gguf", GGUF, body, announced=len(body) + 1)
    assert eventually(lambda: left() == [])
    assert put(live, "whole", body).status_code == 201
    assert left() == ["whole"]


@on_sqlite
def test_what_a_killed_upload_left_goes_with_the_next(
    api: TestClient, settings: Settings, files: Files, left: Callable[[], list[str]]
) -> None:
    (settings.models_dir / ".upload-dead" / "half").mkdir(parents=True)
    problem(put(api, "bad", b""), 422, "upload_refused", "body")
    assert left() == []


@on_sqlite
def test_a_full_disk(settings: Settings, store: JobStore, files: Files, left: Callable[[], list[str]]) -> None:
    with opened(settings.model_copy(update={"min_free_disk_bytes": 2**60})) as full:
        problem(put(full, "a", tar(files)), 507, "no_room")
        assert left() == []
        assert full.delete("/models/tiny").status_code == 204, "removing makes room"
