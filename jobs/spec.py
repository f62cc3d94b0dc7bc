"""What a client asks for: one frozen model, the same from request to row to command line to model card."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from flattengpt_core.depth import layers_to_keep
from flattengpt_core.local_names import LOCAL
from flattengpt_core.methods import METHODS
from flattengpt_core.options import TARGETS, Budget, Target
from jobs import publish_target, webhook_target
from jobs.queues import DEFAULT, QueueName

# No control characters: PostgreSQL cannot store NUL, and nobody means the others.
_PRINTABLE = r"^[^\x00-\x1f\x7f]*$"
Name = Annotated[str, StringConstraints(min_length=1, max_length=300, pattern=_PRINTABLE)]
# No slash: paths are files', which only the command line may name. A colon for `local:NAME`, a plus to join texts.
TextName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+:-]{0,299}$")]
# No dot and no slash: such names are files', which only the command line may name.
TaskName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$")]
RepoId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")]
# SQLite finds no other keys in JSON.
LabelKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,63}$")]
WebhookEvent = Literal["started", "succeeded", "failed", "cancelled"]
LabelValue = Annotated[str, StringConstraints(max_length=512, pattern=_PRINTABLE)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CalibrationSpec(_Part):
    dataset: TextName = Field(
        default="wikitext2",
        description="A text's name (`wikitext2`, `python-docs`, or `local:NAME` of an uploaded one), or several joined "
        "by '+'.",
    )
    samples: int = Field(default=128, ge=1, le=4096, description="Windows of text in all.")
    sequence_length: int = Field(default=2048, ge=16, le=32768, description="Tokens a window.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Which windows.")


class RecoverySpec(_Part):
    method: Literal["none", "lora", "distill"] = Field(
        default="none", description="Training after compression: on the text itself, or towards the dense model."
    )
    steps: int = Field(default=500, ge=1, le=100_000, description="Optimiser steps.")
    rank: int = Field(default=8, ge=1, le=512, description="Rank of the LoRA matrices.")
    learning_rate: float = Field(default=1e-4, gt=0, le=1, description="The peak.")
    epochs: int | None = Field(
        default=None, ge=1, le=100, description="Passes over the text; if given, it decides instead of `steps`."
    )
    alpha: int | None = Field(
        default=None, ge=1, le=4096, description="LoRA matrices are scaled by alpha / rank; twice the rank if null."
    )
    targets: tuple[Target, ...] = Field(
        default=TARGETS, min_length=1, max_length=len(TARGETS), description="Projections that LoRA trains."
    )
    train: Literal["lora", "full"] = Field(
        default="lora", description="What `distill` trains: LoRA matrices, or all but the embeddings and the head."
    )
    batch_tokens: int = Field(
        default=1024, ge=16, le=2**22, description="Tokens an optimiser step, over all devices; at least one window."
    )
    warmup: float = Field(default=0.05, ge=0, le=1, description="Share of the steps in which the learning rate rises.")
    schedule: Literal["linear", "cosine"] = Field(default="linear", description="How it falls after that.")
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="What matrix products are computed in; weights, losses and the optimiser stay in float32.",
    )
    temperature: float = Field(default=1.0, ge=0.1, le=20, description="`distill`: of both models' distributions.")
    hidden_weight: float = Field(
        default=1.0, ge=0, le=1000, description="`distill`: weight of the hidden states' relative error."
    )
    token_weight: float = Field(
        default=0.0, ge=0, le=1000, description="`distill`: weight of the loss on the text itself."
    )

    @field_validator("targets")
    @classmethod
    def _each_once(cls, targets: tuple[Target, ...]) -> tuple[Target, ...]:
        if len(set(targets)) < len(targets):
            raise ValueError("name each projection once")
        return targets

    @model_validator(mode="after")
    def _only_distill_trains_all(self) -> "RecoverySpec":
        if self.train == "full" and self.method == "lora":
            raise ValueError("train 'full' is for method 'distill'")
        return self


class EvaluationSpec(_Part):
    perplexity: tuple[TextName, ...] = Field(
        default=("wikitext2",),
        max_length=8,
        description="Texts to report perplexity on: named ones on their held-out part, `local:NAME` as a whole.",
    )
    tasks: tuple[TaskName, ...] = Field(
        default=(),
        max_length=32,
        description="Tasks by lm-eval's names; their data is the Hub's.",
        examples=[["piqa", "arc_easy"]],
    )
    task_items: int | None = Field(default=None, ge=1, le=100_000, description="At most so many items a task.")
    sequence_length: int = Field(default=512, ge=16, le=32768, description="Tokens a window.")
    windows: int | None = Field(default=None, ge=1, le=100_000, description="At most so many windows a text.")
    benchmark: bool = Field(default=True, description="Also measure tokens/s and latency.")
    benchmark_batch_size: int = Field(default=1, ge=1, le=1024, description="Prompts that generate at once.")
    benchmark_prompt_tokens: int = Field(default=64, ge=1, le=32768, description="Tokens of each of them.")
    benchmark_new_tokens: int = Field(default=32, ge=1, le=4096, description="Tokens generated after each.")
    benchmark_prefill_batch_size: int = Field(default=1, ge=1, le=1024, description="Prompts of the latency's pass.")
    benchmark_prefill_tokens: int = Field(default=512, ge=1, le=32768, description="Tokens of each of them.")


class TargetSpec(_Part):
    max_perplexity_ratio: float = Field(
        gt=1,
        le=1000,
        description="Find the fewest layers whose perplexity stays within this many times the dense model's, on each "
        "calibration text's windows that the fit has not seen.",
    )


class PublishSpec(_Part):
    """Where the result goes: to a repository of the Hub, or to a folder or bucket that the operator allows."""

    repo_id: RepoId | None = Field(
        default=None, description="The Hub repository to create and upload to.", examples=["org/name-flat24"]
    )
    url: str | None = Field(
        default=None,
        max_length=publish_target.MAX_URL,
        description="In place of a repository: `s3://BUCKET/NAMES` or `file:///NAMES`, below one of those that the "
        "operator allows.",
        examples=["s3://models/name-flat24"],
    )
    private: bool = Field(default=True, description="Of a repository: whether only its owner sees it.")
    overwrite: bool = Field(default=False, description="Replace what is there, also if this job did not put it there.")

    @field_validator("url")
    @classmethod
    def _can_be_written_to(cls, url: str | None) -> str | None:
        return None if url is None else publish_target.check(url)

    @model_validator(mode="after")
    def _one_place(self) -> "PublishSpec":
        if (self.repo_id is None) == (self.url is None):
            raise ValueError("give either repo_id or url")
        if self.url is not None and not self.private:
            raise ValueError("private is a repository's: who may read the url is its owner's to say")
        return self


class WebhookSpec(_Part):
    url: str = Field(
        max_length=webhook_target.MAX_URL,
        description="Where to POST a message; `https`, and on the public internet unless the operator allows others.",
        examples=["https://example.org/hooks/flattengpt"],
    )
    events: tuple[WebhookEvent, ...] = Field(
        default=("succeeded", "failed", "cancelled"), min_length=1, max_length=4, description="What to tell of."
    )

    @field_validator("url")
    @classmethod
    def _can_be_sent_to(cls, url: str) -> str:
        webhook_target.parse(url)
        return url


class JobSpec(_Part):
    """A request to compress a model. Exactly one of `sparsity`, `layers` and `target` is given."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"model": "HuggingFaceTB/SmolLM2-135M-Instruct", "sparsity": 0.2},
                {
                    "model": "local:smollm2-135m-instruct",
                    "layers": 24,
                    "calibration": {"dataset": "python-docs", "samples": 64, "sequence_length": 256},
                    "evaluation": {"perplexity": ["python-docs"]},
                    "labels": {"team": "search"},
                },
            ]
        },
    )

    model: Name = Field(description="A Hub id (`org/name`) or a model of the service's model folder (`local:NAME`).")
    revision: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")] = Field(
        default="main", description="Branch, tag or commit of a Hub model; pinned to its commit at submit."
    )
    method: str = Field(default="flattengpt", description="How to compress.", json_schema_extra={"enum": list(METHODS)})
    sparsity: float | None = Field(default=None, gt=0, lt=1, description="The share of layers to remove.")
    layers: int | None = Field(default=None, ge=1, le=10_000, description="The number of layers to keep.")
    target: TargetSpec | None = Field(default=None, description="A quality to hold, in place of a size.")
    calibration: CalibrationSpec = CalibrationSpec()
    recovery: RecoverySpec = RecoverySpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    publish: PublishSpec | None = None
    webhook: WebhookSpec | None = Field(default=None, description="Who is told of the job's end.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(default="auto", description="What is saved.")
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict, max_length=16)
    queue: QueueName = Field(
        default=DEFAULT, description="Which workers may take the job: those that serve this queue of the service."
    )
    min_gpu_memory_gib: float = Field(
        default=0, ge=0, le=100_000, description="And of these only workers with a GPU of so many GiB."
    )
    priority: int = Field(default=5, ge=0, le=9, description="Where jobs wait, those of a higher one go first.")

    @field_validator("method")
    @classmethod
    def _known_method(cls, method: str) -> str:
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
        return method

    @model_validator(mode="after")
    def _one_target(self) -> "JobSpec":
        given = [name for name in ("sparsity", "layers", "target") if getattr(self, name) is not None]
        if len(given) != 1:
            found = f"{' and '.join(given)} are" if given else "none is"
            raise ValueError(f"give exactly one of sparsity, layers and target: {found} given")
        return self

    @property
    def texts(self) -> set[str]:
        """The names of all texts that the job reads."""
        return {*self.calibration.dataset.split("+"), *self.evaluation.perplexity}

    @property
    def uses_hub(self) -> bool:
        """Whether a token of the Hub may be of use: the model is the Hub's, or the result goes there."""
        to_hub = self.publish is not None and self.publish.repo_id is not None
        return to_hub or not self.model.startswith(LOCAL)

    def goal(self, num_layers: int) -> int | Budget:
        """What is asked of a model of so many layers: the number of layers to keep, or a quality to hold.

        Raises:
            InvalidTarget: the model cannot become that small, or has no layer to spare.
        """
        if self.target is None:
            return layers_to_keep(num_layers, sparsity=self.sparsity, layers=self.layers)
        layers_to_keep(num_layers, layers=1)
        return Budget(**self.target.model_dump())

    def as_request(self) -> dict[str, Any]:
        """The request as JSON, every default filled in."""
        return self.model_dump(mode="json")

    def as_published(self) -> dict[str, Any]:
        """As `as_request`, for whoever gets the result: without the webhook, whose URL may hold a token."""
        return self.as_request() | {"webhook": None}
