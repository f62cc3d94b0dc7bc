"""Checks a request against the model it names, before any work: a job that cannot succeed is refused at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from pydantic import SecretStr

from flattengpt_core import families
from flattengpt_core.checkpoint import HubModel, inspect, resolve
from flattengpt_core.errors import CalibrationNotFound, InvalidRequest, UnsupportedModel
from flattengpt_core.hub import REQUESTS_TOKEN, WORKERS_TOKEN, HubUnreachable, holds_files, look_up
from flattengpt_core.licence import Licence, licence_of, refuse_name
from flattengpt_core.local_names import LOCAL
from flattengpt_core.texts import TEXTS, local_text, refuse_reported_calibration
from jobs import publish_target
from jobs.errors import PublishConflict
from jobs.hub_token import HEADER
from jobs.sealing import Sealer
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.webhook_target import TargetRules, parse

log = structlog.get_logger()


@dataclass(frozen=True)
class Admission:
    """What the checks found out. commit: what a Hub model's revision means now, if the Hub could be asked."""

    commit: str | None


def admit(spec: JobSpec, settings: Settings, hub_token: SecretStr | None = None) -> Admission:
    """Refuse a request that names a missing or unsupported model, an impossible target, an unknown text or queue.

    So is a webhook that could not be signed, or must not be sent to, and a place where the result must not be put.
    A Hub that does not answer is no reason to refuse: loading will tell.

    Args:
        hub_token: of the request; without one the Hub is asked with the service's.

    Raises:
        FlattenGPTError: with the field that is to blame.
    """
    _check_queue(spec, settings)
    _check_texts(spec, settings.texts_dir)
    _check_webhook(spec, settings)
    if spec.publish is not None and spec.publish.url is not None:
        publish_target.root_of(spec.publish.url, settings)
    given = hub_token or settings.hf_token
    token = given.get_secret_value() if given else None
    located = resolve(spec.model, settings.models_dir)
    try:
        if not isinstance(located, HubModel):
            spec.goal(inspect(located.path).num_layers)
            _check_repository(spec, licence_of(located.path), token, settings.hf_endpoint)
            return Admission(commit=None)
        found = look_up(
            located.repo_id,
            revision=spec.revision,
            token=token,
            endpoint=settings.hf_endpoint,
            token_name=REQUESTS_TOKEN if hub_token else WORKERS_TOKEN,
        )
        spec.goal(_layers_of(found.config, spec.model))
        _check_repository(spec, found.licence, token, settings.hf_endpoint)
    except HubUnreachable as error:
        log.warning("the Hub could not be asked", model=spec.model, error=str(error))
        return Admission(commit=None)
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


def check_hub_token(settings: Settings, token: SecretStr | None) -> None:
    """Refuse a token where the service has nothing to seal it with. Raises InvalidRequest."""
    if token is not None and not Sealer(settings).available:
        raise InvalidRequest(
            "This service cannot keep a Hub token: its operator has to set FLATTENGPT_SECRET_KEYS, the same for the "
            "API and the workers. Without one it uses its own, if it has any.",
            field=HEADER,
        )


def _check_repository(spec: JobSpec, licence: Licence | None, token: str | None, endpoint: str) -> None:
    """Refuse a name that the licence does not allow, and a repository that is not to be overwritten."""
    if spec.publish is None or spec.publish.repo_id is None:
        return
    if not spec.publish.private:
        refuse_name(licence, spec.publish.repo_id.rpartition("/")[2])
    if not spec.publish.overwrite and holds_files(spec.publish.repo_id, token=token, endpoint=endpoint):
        raise PublishConflict(
            f'{spec.publish.repo_id} exists and is not empty: choose another name, or give "overwrite": true.',
            field="publish.repo_id",
        )


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
