"""Looks for what is wrong with this machine's setup, and says what to do about each."""

import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import httpx
from pydantic import ValidationError

from cli.client import Client
from cli.errors import ServiceRefused, ServiceUnreachable
from cli.options import DEFAULT_URL
from jobs.redaction import redact
from jobs.settings import Settings

State = Literal["ok", "warning", "wrong"]

HUB_SECONDS = 5
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """What one look found. remedy: what to do, where there is something to do."""

    what: str
    state: State
    found: str
    remedy: str = ""


class Wrong(Exception):
    """A look found something wrong.

    Args:
        found, remedy: as of a finding.
        state: `warning` where the service works without it.
    """

    def __init__(self, found: str, remedy: str, *, state: State = "wrong") -> None:
        super().__init__(found)
        self.found, self.remedy, self.state = found, remedy, state


def examine(url: str = DEFAULT_URL) -> Iterator[Finding]:
    """All findings, one after another; changes nothing but for a probe file in the artifact store.

    Args:
        url: of the service that a client here would talk to.
    """
    try:
        settings = Settings()
    except ValidationError as error:
        for entry in error.errors():
            name = ".".join(map(str, entry["loc"]))
            yield Finding("settings", "wrong", f"{name}: {entry['msg']}", "Mend the variable; see docs/deploy.md.")
        return
    yield Finding("settings", "ok", "embedded" if settings.embedded else "with a broker of its own")
    for what, look in _LOOKS.items():
        yield _finding(what, partial(look, settings))
    yield _finding("service", partial(_service, url))


def _finding(what: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what, "ok", look())
    except Wrong as wrong:
        return Finding(what, wrong.state, redact(wrong.found), wrong.remedy)
    except Exception as error:  # each client has errors of its own
        said = f"{type(error).__name__}: {getattr(error, 'orig', error)}"
        return Finding(what, "wrong", redact(said.splitlines()[0]), _REMEDIES.get(what, ""))


def _libraries(_: Settings) -> str:
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    versions["Python"] = platform.python_version()
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _compute(_: Settings) -> str:
    import torch  # takes seconds, and nothing else here needs it

    from flattengpt_core.errors import InvalidRequest
    from flattengpt_core.options import Recovery
    from flattengpt_core.recovery.precision import refuse_emulated

    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    try:
        refuse_emulated(Recovery(method="lora", precision="bfloat16"), torch.device("cpu"))
    except InvalidRequest:
        return "no GPU; the processor computes in float32 alone"
    return "no GPU; the processor computes in float32 and bfloat16"


def _memory(settings: Settings) -> str:
    from worker.machine import memory_bytes

    here = memory_bytes()
    if settings.max_memory_bytes > here:
        raise Wrong(
            f"FLATTENGPT_MAX_MEMORY_BYTES allows {settings.max_memory_bytes / GIB:.1f} GiB, more than the "
            f"{here / GIB:.1f} GiB there are",
            "Lower it, or leave it out: then the machine's memory counts.",
            state="warning",
        )
    return f"{here / GIB:.1f} GiB for jobs"


def _data_folder(settings: Settings) -> str:
    from worker.machine import existing, free_bytes

    folder = settings.data_dir.absolute()
    if not os.access(existing(folder), os.W_OK | os.X_OK):
        raise Wrong(
            f"{folder} cannot be written to", "Change its rights, or set FLATTENGPT_DATA_DIR to another folder."
        )
    free = free_bytes(folder)
    if free < settings.min_free_disk_bytes:
        raise Wrong(
            f"{folder} has {free / GIB:.1f} GiB free, less than FLATTENGPT_MIN_FREE_DISK_BYTES: a worker takes no job",
            "Make room, or lower the setting.",
        )
    return f"{folder}, {free / GIB:.1f} GiB free"


def _database(settings: Settings) -> str:
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from sqlalchemy import make_url

    from jobs.database import alembic_config, make_engine

    url = make_url(settings.database)
    if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).exists():
        return f"SQLite, {url.database}: made at the first start"
    engine = make_engine(settings.database)
    try:
        with engine.connect() as connection:
            here = MigrationContext.configure(connection).get_current_revision()
        newest = ScriptDirectory.from_config(alembic_config(engine)).get_current_head()
    finally:
        engine.dispose()
    if here != newest:
        raise Wrong(
            f"the schema is at {here or 'nothing'}, this version needs {newest}",
            "Run `flattengpt migrate`; an embedded service does so at its start.",
            state="warning" if settings.embedded else "wrong",
        )
    return f"{url.get_backend_name()}, schema {here}"


def _broker(settings: Settings) -> str:
    from jobs.broker import make_announcer

    if settings.embedded:
        return "folders in the data folder"
    make_announcer(settings).ping()
    return f"answers at {redact(settings.broker_url)}"


def _artifacts(settings: Settings) -> str:
    from jobs.artifacts import ArtifactStore

    ArtifactStore(settings.artifacts).ping()
    return f"{redact(settings.artifacts)} can be written to"


def _models(settings: Settings) -> str:
    from flattengpt_core.checkpoint import inspect
    from flattengpt_core.errors import FlattenGPTError

    folder, broken, good = settings.models_dir, [], 0
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith("."):
            continue
        try:
            inspect(path)
        except FlattenGPTError as error:
            broken.append(f"local:{path.name}: {error.message}")
        else:
            good += 1
    if broken:
        raise Wrong("; ".join(broken), f"Replace or remove it in {folder}.", state="warning")
    return f"{good} in {folder}"


def _hub(settings: Settings) -> str:
    from huggingface_hub import HfApi

    token = settings.hf_token.get_secret_value() if settings.hf_token else None
    try:
        if token is None:
            httpx.head(settings.hf_endpoint, timeout=HUB_SECONDS, follow_redirects=True)
            return f"{settings.hf_endpoint} answers; no HF_TOKEN, so no gated models and no publishing"
        name = HfApi(endpoint=settings.hf_endpoint, token=token).whoami()["name"]
    except Exception as error:
        refused = getattr(getattr(error, "response", None), "status_code", None) in (401, 403)
        if refused:
            raise Wrong("the Hub refuses HF_TOKEN", "Make a new token on the Hub, and set HF_TOKEN to it.") from None
        raise Wrong(
            f"{settings.hf_endpoint} does not answer ({type(error).__name__})",
            "Local models work without it; for others look at the network or HF_ENDPOINT.",
            state="warning",
        ) from None
    return f"{settings.hf_endpoint} knows HF_TOKEN as {name}"


def _mlflow(settings: Settings) -> str:
    from jobs.errors import MissingExtra, TrackingFailed
    from worker.mlflow_server import connect

    if not settings.mlflow_tracking_uri.get_secret_value():
        return "not told of jobs"
    try:
        connect(settings).search_experiments(max_results=1)
    except (MissingExtra, TrackingFailed) as error:
        raise Wrong(error.message, "Mend it, or unset FLATTENGPT_MLFLOW_TRACKING_URI.", state="warning") from None
    except Exception as error:  # whose text quotes addresses
        what = getattr(error, "error_code", None) or type(error).__name__
        raise Wrong(
            f"the server does not answer, or refuses ({what})",
            "Jobs work without it; look at FLATTENGPT_MLFLOW_TRACKING_URI and the user name and password in it.",
            state="warning",
        ) from None
    return f"answers; runs go to the experiment {settings.mlflow_experiment}"


def _service(url: str) -> str:
    with Client(url) as client:
        try:
            client.page(limit=1)
        except ServiceUnreachable:
            raise Wrong(
                f"none at {url}", "Start one with `flattengpt serve`, or set FLATTENGPT_URL.", state="warning"
            ) from None
        except ServiceRefused as error:
            raise Wrong(error.message, "Set FLATTENGPT_API_KEY to a key of that service.") from None
        if not client.is_ready():
            raise Wrong(f"{url} is not ready", "GET /readyz says what it lacks; run `flattengpt doctor` there.")
    return f"{url} is ready"


_LOOKS: dict[str, Callable[[Settings], str]] = {
    "libraries": _libraries,
    "compute": _compute,
    "memory": _memory,
    "data folder": _data_folder,
    "database": _database,
    "broker": _broker,
    "artifacts": _artifacts,
    "models": _models,
    "Hub": _hub,
    "MLflow": _mlflow,
}
_REMEDIES = {
    "libraries": "Install the package anew: pip install flattengpt.",
    "compute": "Install the package anew: pip install flattengpt.",
    "database": "Start the server, or mend FLATTENGPT_DATABASE_URL.",
    "broker": "Start the broker, or mend FLATTENGPT_BROKER_URL.",
    "artifacts": "Mend FLATTENGPT_ARTIFACTS_URL or the rights there.",
}


def is_well(findings: list[Finding]) -> bool:
    """Whether nothing is wrong; warnings are not."""
    return all(finding.state != "wrong" for finding in findings)


def as_json(findings: list[Finding]) -> dict[str, Any]:
    """The findings as JSON."""
    return {"well": is_well(findings), "findings": [asdict(finding) for finding in findings]}
