"""Whether the service lives and is ready, and what it can compress."""

from fastapi import APIRouter
from pydantic import BaseModel, Field

from api.auth import any_key
from api.problems import responses
from api.state import Parts
from flattengpt_core.families import FAMILIES
from flattengpt_core.methods import METHODS
from flattengpt_core.texts import TEXTS
from jobs.errors import NotReady

router = APIRouter(tags=["service"])


class Health(BaseModel):
    """The service's state, in one word."""

    status: str = Field(examples=["ok"])


class Families(BaseModel):
    """What can be asked for."""

    families: dict[str, str] = Field(
        description="Model type to architecture.", examples=[{"llama": "LlamaForCausalLM"}]
    )
    methods: dict[str, str]
    texts: dict[str, str]


@router.get("/healthz", operation_id="health")
def healthz() -> Health:
    """Alive: the process answers."""
    return Health(status="ok")


@router.get("/readyz", operation_id="readiness", responses=responses(503))
def readyz(parts: Parts) -> Health:
    """Ready: database, broker and artifact store answer; else 503, and the problem names the one that does not."""
    checks = {"database": parts.store.ping, "broker": parts.announcer.ping, "artifacts": parts.artifacts.ping}
    for name, check in checks.items():
        try:
            check()
        except Exception as error:  # each client has errors of its own
            raise NotReady(f"The {name} does not answer ({type(error).__name__}).", field=name) from None
    return Health(status="ready")


@router.get("/families", operation_id="listFamilies", responses=responses(401, 429, 503), dependencies=[any_key])
def families() -> Families:
    """Supported architectures, methods and texts."""
    return Families(
        families={family.model_type: family.architecture for family in FAMILIES.values()},
        methods=METHODS,
        texts=TEXTS,
    )
