"""Checks a request against the model it names, before any work: a job that cannot succeed is refused at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from flattengpt_core import families
from flattengpt_core.checkpoint import HubModel, inspect, resolve
from flattengpt_core.errors import CalibrationNotFound, InvalidRequest, UnsupportedModel
from flattengpt_core.local_names import LOCAL
from flattengpt_core.texts import TEXTS, local_text, refuse_reported_calibration
from jobs.sealing import Sealer
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.webhook_target import TargetRules, parse

log = structlog.get_logger()


@dataclass(frozen=True)
class Admission:
    """What the checks found out. commit: what a Hub model's revision means now, if the Hub could be asked."""

    commit: str | None


def admit(spec: JobSpec, settings: Settings) -> Admission:
    """Refuse a request that names a missing or unsupported model, an impossible target, an unknown text or queue.

    So is a webhook that could not be signed, or must not be sent to.
    A Hub that does not answer is no reason to refuse: loading will tell.

    Raises:
        FlattenGPTError: with the field that is to blame.
    """
    _check_queue(spec, settings)
    _check_texts(spec, settings.texts_dir)
    _check_webhook(spec, settings)
    located = resolve(spec.model, settings.models_dir)
    if not isinstance(located, HubModel):
        spec.goal(inspect(located.path).num_layers)
        return Admission(commit=None)
    from flattengpt_core.hub import HubUnreachable, look_up  # a tenth of the API's start, and for Hub models alone

    token = settings.hf_token.get_secret_value() if settings.hf_token else None
    try:
        found = look_up(located.repo_id, revision=spec.revision, token=token, endpoint=settings.hf_endpoint)
    except HubUnreachable as error:
        log.warning("the Hub could not be asked", model=spec.model, error=str(error))
        return Admission(commit=None)
    spec.goal(_layers_of(found.config, spec.model))
    return Admission(commit=found.commit)


def _layers_of(config: Any, model: str) -> int:
    """The number of layers that a config.json of the Hub promises; its weights are checked when they are there."""
    if not isinstance(config, dict):
        raise UnsupportedModel(f"config.json of {model} is not a JSON object.", field="model")
    families.family_of(config)
    layers = config.get("num_hidden_layers")
    if not isinstance(layers, int) or layers < 1:
        raise UnsupportedModel(f"config.json of {model} has no valid num_hidden_layers ({layers!r}).", field="model")
    return layers


def _check_queue(spec: JobSpec, settings: Settings) -> None:
    if spec.queue not in settings.queues:
        known = ", ".join(settings.queues)
        raise InvalidRequest(f"This service has no queue {spec.queue!r}; it has {known}.", field="queue")


def _check_webhook(spec: JobSpec, settings: Settings) -> None:
    """Refuse a webhook that could not be signed, or must not be sent to; what its name resolves to comes later."""
    if spec.webhook is not None:
        TargetRules.of(settings).check(parse(spec.webhook.url))
        Sealer(settings).check()


def _check_texts(spec: JobSpec, texts_dir: Path) -> None:
    asked = {"calibration.dataset": spec.calibration.dataset.split("+")}
    asked["evaluation.perplexity"] = list(spec.evaluation.perplexity)
    for field, names in asked.items():
        for name in names:
            if name not in TEXTS and local_text(name, texts_dir) is None:
                raise CalibrationNotFound(_unknown(name), field=field)
    refuse_reported_calibration(spec.calibration.dataset, spec.evaluation.perplexity, texts_dir)


def _unknown(name: str) -> str:
    if name.startswith(LOCAL):
        return f"There is no local text {name!r}: put it there first (PUT /datasets/NAME)."
    return f"{name!r} is no text this service knows; known are {', '.join(TEXTS)}, and {LOCAL}NAME of uploaded ones."
