"""What `POST /jobs` takes, and how it refuses everything else before anything is stored."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.store import JobStore
from tests.api.conftest import REQUEST, TINY, URL, Variant, on_sqlite, problem
from tests.hub.state import Hub
from tests.hub_server import running_hub

FAMILIES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "safetensors", "GGUF")
JSON = {"Content-Type": "application/json"}


def nothing_stored(store: JobStore) -> bool:
    return store.page().jobs == []


def messages(settings: Settings) -> list[Path]:
    """What waits in the embedded queue."""
    return list((settings.data_dir / "broker" / "messages").iterdir())


def test_accepted(api: TestClient, store: JobStore, settings: Settings) -> None:
    response = api.post("/jobs", json=REQUEST | {"labels": {"team": "search"}})
    assert response.status_code == 202
    body = response.json()
    assert response.headers["location"] == f"/jobs/{body['id']}"
    assert (body["status"], body["progress"], body["attempt"], body["stage"]) == ("queued", 0, 0, None)
    assert body["request"] == store.get(body["id"]).request
    assert JobSpec.model_validate(body["request"]) == JobSpec(**REQUEST, labels={"team": "search"})
    assert api.get(response.headers["location"]).json() == body
    assert len(messages(settings)) == 1


def test_words_of_any_language(api: TestClient) -> None:
    labels = {"team": "Übersetzung 翻訳 🔍"}
    job = api.post("/jobs", json=REQUEST | {"labels": labels}).json()
    assert api.get(f"/jobs/{job['id']}").json()["labels"] == labels
    assert [found["id"] for found in api.get("/jobs", params={"label": f"team:{labels['team']}"}).json()["jobs"]] == [
        job["id"]
    ]


@on_sqlite
@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"sparcity": 0.2}, "invalid_request", "sparcity"),
        ({"path": "x"}, "invalid_request", "path"),
        ({"calibration": {"dataset": "python-docs", "sample": 3}}, "invalid_request", "calibration.sample"),
        ({"layers": None}, "invalid_request", "sparsity"),
        ({"sparsity": 0.5}, "invalid_request", "sparsity"),
        ({"layers": 0}, "invalid_request", "layers"),
        ({"layers": -1}, "invalid_request", "layers"),
        ({"layers": 6}, "invalid_target", "layers"),
        ({"layers": 7}, "invalid_target", "layers"),
        ({"layers": 2**70}, "invalid_request", "layers"),
        ({"layers": 3.5}, "invalid_request", "layers"),
        ({"layers": None, "sparsity": 0}, "invalid_request", "sparsity"),
        ({"layers": None, "sparsity": 1}, "invalid_request", "sparsity"),
        ({"layers": None, "sparsity": -0.2}, "invalid_request", "sparsity"),
        ({"layers": None, "sparsity": 1e999}, "invalid_request", "sparsity"),
        ({"layers": None, "sparsity": float("nan")}, "invalid_request", "sparsity"),
        ({"layers": None, "sparsity": 2**70}, "invalid_request", "sparsity"),
        ({"layers": None, "sparsity": 0.01}, "invalid_target", "sparsity"),
        ({"layers": None, "sparsity": 0.99}, "invalid_target", "sparsity"),
        ({"method": "magic"}, "invalid_request", "method"),
        ({"method": "a\0"}, "invalid_request", "method"),
        ({"dtype": "int8"}, "invalid_request", "dtype"),
        ({"revision": "../main"}, "invalid_request", "revision"),
        ({"calibration": {"dataset": "nothing"}}, "calibration_not_found", "calibration.dataset"),
        ({"calibration": {"dataset": "/etc/passwd"}}, "invalid_request", "calibration.dataset"),
        ({"calibration": {"dataset": "python-docs", "samples": 10**9}}, "invalid_request", "calibration.samples"),
        ({"calibration": {"dataset": "python-docs", "seed": -1}}, "invalid_request", "calibration.seed"),
        ({"recovery": {"learning_rate": float("nan")}}, "invalid_request", "recovery.learning_rate"),
        ({"recovery": {"method": "distil"}}, "invalid_request", "recovery.method"),
        ({"evaluation": {"perplexity": ["nothing"]}}, "calibration_not_found", "evaluation.perplexity"),
        (
            {"evaluation": {"perplexity": ["python-docs"], "tasks": ["a.jsonl"]}},
            "invalid_request",
            "evaluation.tasks.0",
        ),
        ({"queue": "nowhere"}, "invalid_request", "queue"),
        ({"queue": "No/Name"}, "invalid_request", "queue"),
        ({"priority": 10}, "invalid_request", "priority"),
        ({"min_gpu_memory_gib": -1}, "invalid_request", "min_gpu_memory_gib"),
        ({"publish": {"repo_id": "no-owner"}}, "invalid_request", "publish.repo_id"),
        ({"publish": {"repo_id": "../../x"}}, "invalid_request", "publish.repo_id"),
        ({"labels": {"team": "a\0b"}}, "invalid_request", "labels.team"),
        ({"labels": {"team": "\ud800"}}, "invalid_request", "labels.team"),
        ({"labels": {f"k{n}": "v" for n in range(17)}}, "invalid_request", "labels"),
    ],
    ids=repr,
)
def test_refused_for_a_field(
    api: TestClient, store: JobStore, settings: Settings, changes: dict[str, Any], code: str, field: str
) -> None:
    response = api.post("/jobs", content=json.dumps(REQUEST | changes), headers=JSON)
    body = problem(response, 422, code, field)
    assert body["detail"].startswith(f"{field}: ")
    assert nothing_stored(store)
    assert messages(settings) == []


@on_sqlite
def test_each_wrong_field_is_named(api: TestClient) -> None:
    body = REQUEST | {"layers": 0, "method": "magic", "calibration": {"samples": 0}}
    problem(api.post("/jobs", json=body), 422, "invalid_request", "method", "layers", "calibration.samples")


@on_sqlite
@pytest.mark.parametrize("change", [{}, {"layers": 3, "sparsity": 0.5}])
def test_exactly_one_target(api: TestClient, change: dict[str, Any]) -> None:
    body = problem(api.post("/jobs", json=TINY | change), 422, "invalid_request", "sparsity")
    assert "exactly one of sparsity, layers and target" in body["detail"]


@on_sqlite
def test_a_quality_to_hold_is_a_target(api: TestClient) -> None:
    request = {key: value for key, value in REQUEST.items() if key != "layers"}
    accepted = api.post("/jobs", json=request | {"target": {"max_perplexity_ratio": 1.2}})
    assert accepted.status_code == 202
    assert accepted.json()["request"]["target"] == {"max_perplexity_ratio": 1.2}
    body = request | {"target": {"max_perplexity_ratio": 1}}
    problem(api.post("/jobs", json=body), 422, "invalid_request", "target.max_perplexity_ratio")


@on_sqlite
def test_an_impossible_target_says_what_is_possible(api: TestClient) -> None:
    assert (
        "choose 1 to 5"
        in problem(api.post("/jobs", json=REQUEST | {"layers": 6}), 422, "invalid_target", "layers")["detail"]
    )


@on_sqlite
def test_an_unknown_method_lists_the_known(api: TestClient) -> None:
    detail = problem(api.post("/jobs", json=REQUEST | {"method": "magic"}), 422, "invalid_request", "method")["detail"]
    assert all(method in detail for method in api.get("/families").json()["methods"])


@on_sqlite
@pytest.mark.parametrize(
    ("body", "status", "code", "fields"),
    [
        (b"", 422, "invalid_request", ["body"]),
        (b'{"model": "local:tiny",', 422, "invalid_request", ["body"]),
        (b"[]", 422, "invalid_request", ["body"]),
        (b"null", 422, "invalid_request", ["body"]),
        (b'"local:tiny"', 422, "invalid_request", ["body"]),
        (b'{"model": "local:tiny", "layers": 4, "\\ud800": 1}', 422, "invalid_request", ["body"]),
        (b'{"model": "\xff", "layers": 4}', 400, "bad_request", []),
        (b"[" * 100_000, 400, "bad_request", []),
        (b'{"model": "local:tiny", "layers": 1' + b"0" * 5000 + b"}", 400, "bad_request", []),
        (b'{"model": "' + b"x" * 1_000_000 + b'"}', 413, "content_too_large", []),
    ],
    ids=["empty", "cut", "list", "null", "string", "surrogate", "no-utf8", "deep", "long-number", "huge"],
)
def test_refused_as_a_whole(
    api: TestClient, store: JobStore, body: bytes, status: int, code: str, fields: list[str]
) -> None:
    problem(api.post("/jobs", content=body, headers=JSON), status, code, *fields)
    assert nothing_stored(store)


@on_sqlite
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
def test_only_json_is_read(api: TestClient, store: JobStore, kind: str | None) -> None:
    """A page in a browser can send the others to this machine without asking."""
    headers = {"Content-Type": kind} if kind is not None else {}
    problem(api.post("/jobs", content=json.dumps(REQUEST), headers=headers), 422, "invalid_request", "body")
    assert nothing_stored(store)


@on_sqlite
def test_a_body_that_does_not_tell_its_length(live: httpx.Client, store: JobStore) -> None:
    blocks = (b" " * 100_000 for _ in range(20))
    problem(live.post("/jobs", content=blocks, headers=JSON), 413, "content_too_large")
    assert nothing_stored(store)


def test_control_characters_in_a_name(api: TestClient, store: JobStore) -> None:
    for name in ("local:ti\0ny", "local:tiny\n", "\0"):
        problem(api.post("/jobs", json=REQUEST | {"model": name}), 422, "invalid_request", "model")
    assert nothing_stored(store)


@on_sqlite
@pytest.mark.parametrize(
    "name",
    [
        "local:missing", "local:TINY", "local:", "local:.", "local:..", "local:../outside", "local:/etc", "local:tiny/",
        "local:tiny/../../outside", "local:..%2foutside", "local:tiny\u0301", "local:a file", "tiny", "/etc/passwd",
        "./tiny", "../outside/x", "org/..", "a/b/c", "C:\\x", "https://example.com/x", "file:///etc/passwd",
    ],
)  # fmt: skip
def test_no_such_model(api: TestClient, store: JobStore, settings: Settings, name: str) -> None:
    shutil.copytree(settings.models_dir / "tiny", settings.data_dir / "outside")
    problem(api.post("/jobs", json=REQUEST | {"model": name}), 422, "model_not_found", "model")
    assert nothing_stored(store)


@on_sqlite
def test_a_link_out_of_the_model_folder(api: TestClient, store: JobStore, settings: Settings) -> None:
    outside = shutil.copytree(settings.models_dir / "tiny", settings.data_dir / "outside")
    (settings.models_dir / "odd").symlink_to(outside)
    response = api.post("/jobs", json=REQUEST | {"model": "local:odd"})
    assert "leads out of the model folder" in problem(response, 422, "model_not_found", "model")["detail"]
    assert nothing_stored(store)
    (settings.models_dir / "circle").symlink_to(settings.models_dir / "circle")
    response = api.post("/jobs", json=REQUEST | {"model": "local:circle"})
    problem(response, 422, "model_not_found", "model")
    (settings.models_dir / "within").symlink_to(settings.models_dir / "tiny")
    assert api.post("/jobs", json=REQUEST | {"model": "local:within"}).status_code == 202


@on_sqlite
@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "gpt2"}, "'gpt2' is not supported"),
        ({"model_type": "qwen3"}, "'qwen3' is not supported"),
        ({"model_type": None}, "is not supported"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised (gptq)"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised (awq)"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "quantised (bitsandbytes)"),
        ({"quantization_config": {"quant_method": "\ud800"}}, "quantised (?)"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Evil"}}, "auto_map"),
    ],
)
def test_an_unsupported_model_is_told_what_is(
    api: TestClient, store: JobStore, variant: Variant, config: dict[str, Any], words: str
) -> None:
    variant(**config)
    detail = problem(api.post("/jobs", json=REQUEST | {"model": "local:odd"}), 422, "unsupported_model", "model")[
        "detail"
    ]
    assert words in detail
    assert all(name in detail for name in FAMILIES)
    assert nothing_stored(store)


@on_sqlite
@pytest.mark.parametrize(
    "config",
    [
        {"num_hidden_layers": 2**70},
        {"num_hidden_layers": 0},
        {"num_hidden_layers": -6},
        {"num_hidden_layers": 1e999},
        {"num_hidden_layers": float("nan")},
        {"num_hidden_layers": "6"},
        {"num_hidden_layers": None},
        {"hidden_size": 2**70},
        {"intermediate_size": 47},
        {"num_attention_heads": 2**70},
        {"num_key_value_heads": -2},
        {"head_dim": 2**70},
        {"head_dim": {"of": 8}},
        {"head_dim": True},
        {"num_key_value_heads": [2]},
    ],
    ids=repr,
)
def test_a_config_with_absurd_numbers(
    api: TestClient, store: JobStore, variant: Variant, config: dict[str, Any]
) -> None:
    variant(**config)
    problem(api.post("/jobs", json=REQUEST | {"model": "local:odd"}), 422, "unsupported_model", "model")
    assert nothing_stored(store)


@on_sqlite
@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"6", b"\xff\xfe", b'{"num_hidden_layers": 1' + b"0" * 5000 + b"}", b"[" * 100_000],
    ids=lambda text: repr(text[:24]),
)
def test_a_config_that_is_none(api: TestClient, store: JobStore, variant: Variant, text: bytes) -> None:
    (variant() / "config.json").write_bytes(text)
    problem(api.post("/jobs", json=REQUEST | {"model": "local:odd"}), 422, "unsupported_model", "model")
    assert nothing_stored(store)


@on_sqlite
def test_no_config(api: TestClient, variant: Variant) -> None:
    (variant() / "config.json").unlink()
    problem(api.post("/jobs", json=REQUEST | {"model": "local:odd"}), 422, "model_not_found", "model")


@on_sqlite
@pytest.mark.parametrize("keep", [0, 2, 100, -1], ids=["empty", "no-header", "cut-header", "cut-data"])
def test_a_damaged_safetensors_file(api: TestClient, store: JobStore, variant: Variant, keep: int) -> None:
    file = variant() / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    response = api.post("/jobs", json=REQUEST | {"model": "local:odd"})
    assert "not a valid safetensors file" in problem(response, 422, "unsupported_model", "model")["detail"]
    assert nothing_stored(store)


@on_sqlite
def test_a_safetensors_header_that_claims_the_memory(api: TestClient, variant: Variant) -> None:
    (variant() / "model.safetensors").write_bytes(b"\xff" * 8 + b"{}")
    problem(api.post("/jobs", json=REQUEST | {"model": "local:odd"}), 422, "unsupported_model", "model")


@on_sqlite
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt"])
def test_pickled_weights_are_not_opened(api: TestClient, store: JobStore, variant: Variant, name: str) -> None:
    folder = variant()
    (folder / "model.safetensors").rename(folder / name)
    response = api.post("/jobs", json=REQUEST | {"model": "local:odd"})
    detail = problem(response, 422, "unsupported_model", "model")["detail"]
    assert "pickled weights" in detail
    assert all(name in detail for name in FAMILIES)
    assert nothing_stored(store)


@on_sqlite
@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 200, b"no GGUF at all" * 10])
def test_a_damaged_gguf_file(api: TestClient, store: JobStore, settings: Settings, content: bytes) -> None:
    (settings.models_dir / "odd.gguf").write_bytes(content)
    problem(api.post("/jobs", json=REQUEST | {"model": "local:odd.gguf"}), 422, "unsupported_model", "model")
    assert nothing_stored(store)


def test_the_same_key_gives_the_same_job(api: TestClient, store: JobStore) -> None:
    key = {"Idempotency-Key": "nightly-7"}
    first = api.post("/jobs", json=REQUEST, headers=key)
    again = api.post("/jobs", json=REQUEST, headers=key)
    assert (again.status_code, again.json()) == (202, first.json())
    assert again.headers["location"] == first.headers["location"]
    assert len(store.page().jobs) == 1
    other = api.post("/jobs", json=REQUEST | {"layers": 3}, headers=key)
    problem(other, 422, "idempotency_mismatch", "Idempotency-Key")
    assert len(store.page().jobs) == 1
    assert api.post("/jobs", json=REQUEST, headers={"Idempotency-Key": "nightly-8"}).json()["id"] != first.json()["id"]


def test_the_same_key_at_the_same_time(live: httpx.Client, store: JobStore) -> None:
    def post(_: int) -> httpx.Response:
        return live.post("/jobs", json=REQUEST, headers={"Idempotency-Key": "once"})

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(post, range(8)))
    assert {answer.status_code for answer in answers} == {202}
    assert {answer.json()["id"] for answer in answers} == {job.id for job in store.page().jobs}
    assert len(store.page().jobs) == 1


@on_sqlite
@pytest.mark.parametrize("key", ["", "k" * 256], ids=["empty", "long"])
def test_a_key_that_is_none(api: TestClient, store: JobStore, key: str) -> None:
    response = api.post("/jobs", json=REQUEST, headers={"Idempotency-Key": key})
    problem(response, 422, "invalid_request", "Idempotency-Key")
    assert nothing_stored(store)


@on_sqlite
def test_a_silent_broker_loses_nothing(settings: Settings, store: JobStore) -> None:
    """The sweeper will ring for the job."""
    silent = settings.model_copy(update={"broker_url": "redis://127.0.0.1:9/0"})
    with TestClient(create_app(silent), base_url=URL) as api:
        job = api.post("/jobs", json=REQUEST)
    assert job.status_code == 202
    assert store.next_queued() == job.json()["id"]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture
def with_hub(settings: Settings, store: JobStore, hub: Hub) -> Iterator[TestClient]:
    """The application with a Hub that answers."""
    with TestClient(create_app(settings.model_copy(update={"hf_endpoint": hub.endpoint})), base_url=URL) as client:
        yield client


HUB_REQUEST = REQUEST | {"model": "acme/tiny"}


def files_of(folder: Path, **config: Any) -> dict[str, bytes]:
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    return files | {"config.json": json.dumps(json.loads(files["config.json"]) | config).encode()}


@on_sqlite
def test_a_hub_model_is_pinned_to_its_commit(with_hub: TestClient, store: JobStore, hub: Hub, tiny: Path) -> None:
    repository = hub.add("acme/tiny", files_of(tiny))
    job = with_hub.post("/jobs", json=HUB_REQUEST)
    assert job.status_code == 202, job.text
    assert store.get(job.json()["id"]).commit == repository.head.id
    assert job.json()["request"]["revision"] == "main"
    assert not hub.requests("safetensors")


@on_sqlite
def test_a_hub_that_does_not_answer_is_no_reason_to_refuse(api: TestClient, store: JobStore) -> None:
    job = api.post("/jobs", json=HUB_REQUEST)
    assert job.status_code == 202
    assert store.get(job.json()["id"]).commit is None


@on_sqlite
@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "unsupported_model"),
        ({"model_type": "gpt2"}, "unsupported_model"),
        ({"auto_map": {"AutoConfig": "x.Evil"}}, "unsupported_model"),
        ({"num_hidden_layers": None}, "unsupported_model"),
        ({"num_hidden_layers": "six"}, "unsupported_model"),
        ({"num_hidden_layers": 1e999}, "unsupported_model"),
    ],
    ids=repr,
)
def test_a_hub_model_that_cannot_be_compressed(
    with_hub: TestClient, store: JobStore, hub: Hub, tiny: Path, config: dict[str, Any], code: str
) -> None:
    hub.add("acme/tiny", files_of(tiny, **config))
    problem(with_hub.post("/jobs", json=HUB_REQUEST), 422, code, "model")
    assert nothing_stored(store)


@on_sqlite
def test_a_hub_config_that_is_no_object(with_hub: TestClient, hub: Hub, tiny: Path) -> None:
    hub.add("acme/tiny", files_of(tiny) | {"config.json": b"[]"})
    problem(with_hub.post("/jobs", json=HUB_REQUEST), 422, "unsupported_model", "model")


@on_sqlite
def test_what_the_hub_does_not_have(with_hub: TestClient, store: JobStore, hub: Hub, tiny: Path) -> None:
    problem(with_hub.post("/jobs", json=HUB_REQUEST), 422, "model_not_found", "model")
    hub.add("acme/tiny", files_of(tiny))
    response = with_hub.post("/jobs", json=HUB_REQUEST | {"revision": "v9"})
    problem(response, 422, "model_not_found", "revision")
    response = with_hub.post("/jobs", json=HUB_REQUEST | {"layers": 6})
    problem(response, 422, "invalid_target", "layers")
    hub.add("acme/pickled", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    response = with_hub.post("/jobs", json=HUB_REQUEST | {"model": "acme/pickled"})
    problem(response, 422, "unsupported_model", "model")
    assert nothing_stored(store)
