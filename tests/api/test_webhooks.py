"""Webhooks over HTTP: what is refused at submit, the log, replays, and the signing secret."""

from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from api.app import create_app
from jobs.keys import KeyStore
from jobs.outbox import Outbox
from jobs.scopes import Scope
from jobs.settings import Settings
from jobs.store import JobStore
from tests.api.conftest import REQUEST, URL, on_sqlite, problem, submitted
from tests.receiver import receiving
from worker.webhooks import make_deliverer

HOOK = {"url": "https://hooks.example.org/flattengpt?token=in-the-query"}


def ended(api: httpx.Client, **hook: Any) -> str:
    """The id of a job that was cancelled, which its webhook is to be told of."""
    job_id = submitted(api, webhook=HOOK | hook)
    assert api.post(f"/jobs/{job_id}/cancel").status_code == 202
    return job_id


def log(api: httpx.Client, job_id: str) -> list[dict[str, Any]]:
    answer = api.get(f"/jobs/{job_id}/webhooks")
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["deliveries"]
    return found


# Submitting


@on_sqlite
def test_a_job_shows_its_webhook_and_where_the_log_is(api: TestClient) -> None:
    job = api.get(f"/jobs/{submitted(api, webhook=HOOK)}").json()
    assert job["request"]["webhook"] == HOOK | {"events": ["succeeded", "failed", "cancelled"]}
    assert api.get(job["links"]["webhooks"]).json() == {"deliveries": []}
    assert "webhooks" not in api.get(f"/jobs/{submitted(api)}").json()["links"]


@on_sqlite
def test_what_may_not_be_sent_to_is_refused_at_once(api: TestClient) -> None:
    for url in (
        "http://hooks.example.org/", "https://127.0.0.1/", "https://[::1]/", "https://169.254.169.254/",
        "https://10.0.0.1/", "https://[::ffff:127.0.0.1]/", "https://0.0.0.0/", "https://localhost/", "https://redis/",
        "https://2130706433/", "https://0x7f.1/", "https://0177.0.0.1/", "https://localhost./", "https://127.0.0.1./",
        "https://user:verysecret@hooks.example.org/", "https://hooks.example.org:25/", "ftp://hooks.example.org/",
        "", "x",
        "https://hooks.example.org/" + "x" * 3000,
    ):  # fmt: skip
        refused = api.post("/jobs", json=REQUEST | {"webhook": {"url": url}})
        assert "verysecret" not in problem(refused, 422, "invalid_request", "webhook.url")["detail"]
    assert api.get("/jobs").json()["jobs"] == []


@on_sqlite
def test_the_operator_may_allow_targets_inside(settings: Settings, store: JobStore) -> None:
    allowed = settings.model_copy(update={"webhook_allow_private": True, "webhook_allow_http": True})
    with TestClient(create_app(allowed), base_url=URL) as api:
        for url in ("http://127.0.0.1:8080/", "http://receiver/", "https://[::1]/"):
            submitted(api, webhook={"url": url})


@on_sqlite
def test_a_service_that_cannot_keep_secrets_takes_no_webhooks(settings: Settings, store: JobStore) -> None:
    keyless = settings.model_copy(update={"broker_url": "redis://127.0.0.1:9/0"})
    with TestClient(create_app(keyless), base_url=URL) as api:
        submit = api.post("/jobs", json=REQUEST | {"webhook": HOOK})
        for answer in (submit, api.get("/webhooks/secret"), api.post("/webhooks/secret/rotate")):
            assert "FLATTENGPT_SECRET_KEYS" in problem(answer, 503, "sealing_unavailable")["detail"]
        submitted(api)


# The log


def test_the_log_and_a_replay(api: TestClient, settings: Settings, engine: Engine) -> None:
    with receiving() as receiver:
        allowed = settings.model_copy(update={"webhook_allow_private": True, "webhook_allow_http": True})
        deliverer = make_deliverer(allowed, engine)
        with TestClient(create_app(allowed), base_url=URL) as here:
            job_id = ended(here, url=receiver.url)
        (before,) = log(api, job_id)
        assert (before["type"], before["status"], before["attempts"], before["answer"]) == (
            "job.cancelled", "pending", 0, None
        )  # fmt: skip
        assert before["seq"] == api.get(f"/jobs/{job_id}/events").json()["events"][-1]["seq"]
        deliverer.deliver_due()
        (delivered,) = log(api, job_id)
        assert (delivered["status"], delivered["answer"], delivered["next_try_at"]) == ("delivered", "HTTP 204", None)
        assert delivered["delivered_at"] >= delivered["last_try_at"] >= before["created_at"]
        replayed = api.post(f"/jobs/{job_id}/webhooks/{before['id']}/replay")
        assert replayed.status_code == 202
        assert replayed.json() == log(api, job_id)[0]
        assert (replayed.json()["id"], replayed.json()["status"]) == (before["id"], "pending")
        deliverer.deliver_due()
    secret = api.get("/webhooks/secret").json()["secret"]
    assert [seen.verified(secret)["data"]["id"] for seen in receiver.seen] == [job_id, job_id]
    assert {seen.headers["webhook-id"] for seen in receiver.seen} == {before["id"]}
    assert log(api, job_id)[0]["attempts"] == 2


def test_a_delivery_that_is_not_there(api: TestClient) -> None:
    job_id, other = ended(api), ended(api)
    for wrong in (log(api, other)[0]["id"], "msg_x", "msg_" + "%00" * 26, "%00"):
        problem(api.post(f"/jobs/{job_id}/webhooks/{wrong}/replay"), 404, "delivery_not_found")
    problem(api.get("/jobs/nothing/webhooks"), 404, "job_not_found")


def test_a_deleted_job_takes_its_messages_along(api: TestClient, engine: Engine) -> None:
    job_id = ended(api)
    assert api.delete(f"/jobs/{job_id}").status_code == 204
    problem(api.get(f"/jobs/{job_id}/webhooks"), 404, "job_not_found")
    assert Outbox(engine).log(job_id) == []


# Whose


def test_log_replay_and_secret_are_the_keys_own(settings: Settings, store: JobStore, engine: Engine) -> None:
    keys = KeyStore(engine)
    app = create_app(settings.model_copy(update={"auth": "required"}))

    def caller(name: str, *scopes: Scope) -> TestClient:
        key = keys.create(name, scopes or (Scope.JOBS_READ, Scope.JOBS_WRITE)).key.get_secret_value()
        return TestClient(app, base_url=URL, headers={"Authorization": f"Bearer {key}"})

    mine, theirs, reader, admin = (
        caller("mine"), caller("theirs"), caller("reader", Scope.JOBS_READ), caller("admin", Scope.ADMIN)
    )  # fmt: skip
    job_id = ended(mine)
    (delivery,) = log(mine, job_id)
    replay = f"/jobs/{job_id}/webhooks/{delivery['id']}/replay"
    problem(theirs.get(f"/jobs/{job_id}/webhooks"), 404, "job_not_found")
    problem(theirs.post(replay), 404, "job_not_found")
    problem(reader.post(replay), 403, "forbidden")
    assert admin.post(replay).status_code == mine.post(replay).status_code == 202
    secrets = [client.get("/webhooks/secret").json()["secret"] for client in (mine, theirs, admin)]
    assert len(set(secrets)) == 3
    problem(reader.get("/webhooks/secret"), 403, "forbidden")
    problem(reader.post("/webhooks/secret/rotate"), 403, "forbidden")


# The secret


def test_the_secret_and_its_rotation(api: TestClient) -> None:
    first = api.get("/webhooks/secret")
    assert first.headers["cache-control"] == "no-store"
    assert first.json()["secret"].startswith("whsec_")
    assert first.json()["previous_until"] is None
    rotated = api.post("/webhooks/secret/rotate")
    assert rotated.status_code == 200
    assert rotated.headers["cache-control"] == "no-store"
    assert rotated.json()["secret"] != first.json()["secret"]
    assert rotated.json()["previous_until"] > rotated.json()["created_at"]
    assert api.get("/webhooks/secret").json() == rotated.json()


def test_a_secret_is_nowhere_else(
    api: TestClient, engine: Engine, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    secrets = [api.get("/webhooks/secret").json()["secret"], api.post("/webhooks/secret/rotate").json()["secret"]]
    job_id = ended(api)
    said = "".join(
        api.get(path).text for path in (f"/jobs/{job_id}", f"/jobs/{job_id}/events", f"/jobs/{job_id}/webhooks")
    )
    with engine.connect() as connection:
        for table in ("job", "job_event", "webhook_delivery", "webhook_secret"):
            said += repr(connection.execute(text(f"SELECT * FROM {table}")).all())
    said += caplog.text + "".join(capfd.readouterr())
    assert job_id in said
    for secret in secrets:
        assert secret.removeprefix("whsec_") not in said
