"""Settings from the environment, the only place it is read. Built once at each entry point and passed down."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from jobs.queues import DEFAULT, QueueName


def _split(names: object) -> object:
    return [name.strip() for name in names.split(",")] if isinstance(names, str) else names


Queues = Annotated[tuple[QueueName, ...], NoDecode, BeforeValidator(_split)]
LogLevel = Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(str.lower)]


class Settings(BaseSettings):
    """`FLATTENGPT_*` variables, the Hub's own two, and OpenTelemetry's. Times are in seconds."""

    model_config = SettingsConfigDict(
        env_prefix="FLATTENGPT_", frozen=True, populate_by_name=True, hide_input_in_errors=True
    )

    data_dir: Path = Field(default=Path(".flattengpt"), description="models, artifacts, logs, embedded database")
    database_url: str = Field(default="", description="SQLAlchemy URL; SQLite in data_dir if empty")
    broker_url: str = Field(default="", description="Celery broker; folders in data_dir if empty (embedded)")
    artifacts_url: str = Field(default="", description="fsspec URL of the artifact store; data_dir/artifacts if empty")
    state_url: str = Field(default="", description="fsspec URL for what attempts have finished; the worker's if empty")
    state_seconds: float = Field(default=30, gt=0, description="how often a running attempt stores that there")
    auth: Literal["required", "none"] = "required"

    queues: Queues = Field(
        default=(DEFAULT,),
        min_length=1,
        description="queues that jobs may ask for, comma-separated; a worker serves them all unless it is told which",
    )
    gpu_memory_gib: float | None = Field(
        default=None, ge=0, description="what a worker's GPU has for jobs; the GPU is asked if not set"
    )
    lease_seconds: float = Field(default=30, gt=0, description="a worker silent for so long has lost its job")
    heartbeat_seconds: float = Field(default=5, gt=0, description="how often a worker renews its lease")
    poll_seconds: float = Field(default=0.5, gt=0, description="how often a worker looks after its child process")
    sweep_seconds: float = Field(default=5, gt=0, description="how often lost jobs are looked for")
    announce_after_seconds: float = Field(default=60, gt=0, description="a queued job is announced again after this")
    max_attempts: int = Field(default=3, ge=1, description="a job whose own process dies this often fails")
    max_losses: int = Field(default=20, ge=1, description="a job whose worker falls silent this often fails")
    stop_grace_seconds: float = Field(default=10, gt=0, description="between asking a child to stop and killing it")
    hub_timeout_seconds: float = Field(default=60, gt=0, description="a Hub silent for so long is asked anew")
    max_body_bytes: int = Field(default=1_000_000, gt=0, description="largest request body")
    max_model_bytes: int = Field(default=20_000_000_000, gt=0, description="largest model that can be uploaded")
    max_dataset_bytes: int = Field(default=100_000_000, gt=0, description="largest text that can be uploaded")
    max_queued_jobs: int = Field(default=10_000, ge=1, description="while so many jobs are queued, no other is taken")
    rate_limit: Annotated[str, Field(pattern=r"^([1-9]\d{0,8}/(second|minute|hour|day))?$")] = Field(
        default="1200/minute", description="requests of one API key, as NUMBER/minute; empty: no limit"
    )
    idempotency_hours: float = Field(default=24, gt=0, description="how long an Idempotency-Key is known")
    cors_origins: str = Field(
        default="", description="origins whose pages may call the API, comma-separated; none if empty"
    )
    max_jobs_per_key: int = Field(default=1000, ge=1, description="jobs of one API key that have not ended")
    max_run_seconds: float = Field(default=0, ge=0, description="the longest that an attempt may run; 0: no limit")
    min_free_disk_bytes: int = Field(default=2_000_000_000, ge=0, description="a worker with less free takes no job")
    max_memory_bytes: int = Field(default=0, ge=0, description="memory for a job; 0: the machine's or its cgroup's")
    keep_artifacts_days: float = Field(default=0, ge=0, description="artifacts and logs go after this; 0: never")

    secret_keys: SecretStr = Field(
        default=SecretStr(""), description="seal stored secrets: the first seals, all open; a file if embedded"
    )
    webhook_allow_private: bool = Field(default=False, description="webhooks may go to addresses inside")
    webhook_allow_http: bool = Field(default=False, description="webhooks may go without TLS")
    publish_urls: str = Field(
        default="", description="s3:// and file:// URLs below which results may be published, comma-separated"
    )

    mlflow_tracking_uri: SecretStr = Field(
        default=SecretStr(""), description="MLflow server that workers tell of jobs; none if empty"
    )
    mlflow_experiment: str = Field(default="flattengpt", min_length=1, description="experiment that runs belong to")

    log_format: Literal["console", "json"] | None = Field(
        default=None, description="for people or for machines; if not set, console on a terminal and else json"
    )
    log_level: LogLevel = Field(default="info", description="the least level that is logged")
    otlp_endpoint: str = Field(
        default="",
        validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT",
        description="collector of traces, by OTLP over HTTP; no traces if empty",
    )
    traceparent: str | None = Field(
        default=None,
        validation_alias="TRACEPARENT",
        description="the span that a job's process belongs to; its worker sets it",
    )

    hf_token: SecretStr | None = Field(default=None, validation_alias="HF_TOKEN")
    hf_endpoint: str = Field(default="https://huggingface.co", validation_alias="HF_ENDPOINT")

    @model_validator(mode="after")
    def _heartbeats_keep_the_lease(self) -> "Settings":
        if self.heartbeat_seconds * 2 > self.lease_seconds:
            raise ValueError("FLATTENGPT_HEARTBEAT_SECONDS must be at most half of FLATTENGPT_LEASE_SECONDS")
        return self

    @model_validator(mode="after")
    def _state_is_no_result(self) -> "Settings":
        if self.state_url and self.state_url.rstrip("/") == self.artifacts_url.rstrip("/"):
            raise ValueError("FLATTENGPT_STATE_URL must be another place than FLATTENGPT_ARTIFACTS_URL")
        return self

    @property
    def embedded(self) -> bool:
        """Whether the queue needs no server, so that one command runs the API and a worker."""
        return not self.broker_url

    @property
    def database(self) -> str:
        """The database's URL."""
        return self.database_url or f"sqlite:///{self.data_dir.absolute() / 'flattengpt.db'}"

    @property
    def artifacts(self) -> str:
        """The artifact store's URL, for fsspec."""
        # Not as_uri(): fsspec would take its percent signs literally.
        return self.artifacts_url or f"file://{self.data_dir.absolute() / 'artifacts'}"

    @property
    def models_dir(self) -> Path:
        """Where `local:NAME` models live."""
        return self.data_dir / "models"

    @property
    def texts_dir(self) -> Path:
        """Where `local:NAME` texts live."""
        return self.data_dir / "datasets"


class ClientSettings(BaseSettings):
    """What a client of the service takes from the environment."""

    model_config = SettingsConfigDict(env_prefix="FLATTENGPT_", frozen=True, hide_input_in_errors=True)

    api_key: SecretStr | None = Field(default=None, description="sent with every request")
    hub_token: SecretStr | None = Field(default=None, description="of the Hub, sent with each job")

    @field_validator("api_key")
    @classmethod
    def _is_a_key(cls, key: SecretStr | None) -> SecretStr | None:
        return _fit_for_a_header(key, "FLATTENGPT_API_KEY is no key that `flattengpt keys create` made")

    @field_validator("hub_token")
    @classmethod
    def _is_a_token(cls, token: SecretStr | None) -> SecretStr | None:
        return _fit_for_a_header(token, "FLATTENGPT_HUB_TOKEN is no token of the Hugging Face Hub")


def _fit_for_a_header(secret: SecretStr | None, otherwise: str) -> SecretStr | None:
    """Without the white space that copying brings along; None if it is empty. Raises ValueError(otherwise)."""
    text = secret.get_secret_value().strip() if secret else ""
    if not (text.isascii() and text.isprintable() and " " not in text):
        raise ValueError(otherwise)
    return SecretStr(text) if text else None
