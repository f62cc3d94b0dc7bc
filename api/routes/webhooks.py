"""What a job's webhook was told, once more if asked for, and the secret that messages are signed with."""

from fastapi import APIRouter, Response

from api.auth import Owner, ReadableJobs, WritableJobs
from api.problems import responses
from api.schemas import DeliveryPage, DeliveryReply, SigningSecretReply
from api.state import Parts

router = APIRouter(tags=["webhooks"], responses=responses(401, 403, 429))


@router.get("/jobs/{job_id}/webhooks", operation_id="listJobWebhooks", responses=responses(404, 503))
def deliveries(job_id: str, jobs: ReadableJobs, parts: Parts) -> DeliveryPage:
    """The messages to the job's webhook, and what became of each; kept for 30 days."""
    jobs.get(job_id)
    return DeliveryPage(deliveries=[DeliveryReply.of(delivery) for delivery in parts.outbox.log(job_id)])


@router.post(
    "/jobs/{job_id}/webhooks/{delivery_id}/replay",
    status_code=202,
    operation_id="replayJobWebhook",
    responses=responses(404, 503),
)
def replay(job_id: str, delivery_id: str, jobs: WritableJobs, parts: Parts) -> DeliveryReply:
    """Send a message again, at once and under the same id, whatever became of it; it has all its tries again."""
    jobs.get(job_id)
    return DeliveryReply.of(parts.outbox.replay(job_id, delivery_id))


@router.get("/webhooks/secret", operation_id="getWebhookSecret", responses=responses(503))
def secret(owner: Owner, parts: Parts, response: Response) -> SigningSecretReply:
    """What the messages about this key's jobs are signed with; made when it is first needed."""
    response.headers["Cache-Control"] = "no-store"
    return SigningSecretReply.of(parts.webhook_secrets.of(owner))


@router.post("/webhooks/secret/rotate", operation_id="rotateWebhookSecret", responses=responses(503))
def rotate(owner: Owner, parts: Parts, response: Response) -> SigningSecretReply:
    """Make a new secret. For 24 hours messages have two signatures, so that receivers can change over."""
    response.headers["Cache-Control"] = "no-store"
    return SigningSecretReply.of(parts.webhook_secrets.rotate(owner))
