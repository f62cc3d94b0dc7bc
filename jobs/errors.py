"""The errors of a job's life, in the one hierarchy of `flattengpt_core.errors`."""

from flattengpt_core.errors import FlattenGPTError, InvalidRequest


class JobNotFound(FlattenGPTError):
    code = "job_not_found"
    status = 404
    title = "There is no such job"


class ArtifactNotFound(FlattenGPTError):
    code = "artifact_not_found"
    status = 404
    title = "The job has no such artifact"


class ArtifactsRemoved(FlattenGPTError):
    code = "artifacts_removed"
    status = 410
    title = "The job's artifacts were kept for a time, which is over"


class Conflict(FlattenGPTError):
    code = "conflict"
    status = 409
    title = "The job's state does not allow this"


class IdempotencyMismatch(FlattenGPTError):
    code = "idempotency_mismatch"
    status = 422
    title = "This Idempotency-Key was used with another request"


class TooMany(FlattenGPTError):
    """The client has asked for too much; it may ask again after `retry_after_seconds`."""

    status = 429
    retryable = True

    def __init__(self, message: str, *, retry_after_seconds: int = 30) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class TooManyRequests(TooMany):
    code = "too_many_requests"
    title = "The key has asked too often"


class TooManyJobs(TooMany):
    """There is no room for another job."""


class QueueFull(TooManyJobs):
    code = "queue_full"
    title = "The queue is full"


class QuotaExceeded(TooManyJobs):
    code = "quota_exceeded"
    title = "The key has as many jobs as it may have"


class KeyNotFound(FlattenGPTError):
    code = "key_not_found"
    status = 404
    title = "There is no such API key"


class KeyNameTaken(FlattenGPTError):
    code = "key_name_taken"
    status = 409
    title = "Another API key has this name"


class DeliveryNotFound(FlattenGPTError):
    code = "delivery_not_found"
    status = 404
    title = "The job has no such webhook delivery"


class SealingUnavailable(FlattenGPTError):
    code = "sealing_unavailable"
    status = 503
    title = "The service cannot keep secrets"


class LeaseLost(FlattenGPTError):
    """A write came from an attempt that no longer owns the job; the writer must stop."""

    code = "lease_lost"
    status = 409
    title = "Another attempt owns the job"
    retryable = True


class WorkerLost(FlattenGPTError):
    code = "worker_lost"
    title = "The job's process died too often"
    retryable = True


class RunTooLong(FlattenGPTError):
    code = "run_too_long"
    title = "The job ran longer than the service allows"


class NotEnoughDisk(FlattenGPTError):
    code = "not_enough_disk"
    status = 507
    title = "The worker's disk has no room for the job"
    retryable = True


class NotEnoughMemory(FlattenGPTError):
    code = "not_enough_memory"
    status = 507
    title = "The worker's memory cannot hold the job"


class NotReady(FlattenGPTError):
    code = "not_ready"
    status = 503
    title = "The service is not ready"
    retryable = True


class PublishFailed(FlattenGPTError):
    code = "publish_failed"
    status = 502
    title = "The result could not be published"
    retryable = True


class PublishConflict(PublishFailed):
    code = "publish_conflict"
    status = 409
    title = "There is something else where the result was to be published"
    retryable = False


class TrackingFailed(FlattenGPTError):
    code = "tracking_failed"
    status = 502
    title = "The MLflow server could not be told of the job"
    retryable = True


class NotStored(FlattenGPTError):
    code = "not_stored"
    status = 404
    title = "Nothing is stored under this name"


class NameTaken(FlattenGPTError):
    code = "name_taken"
    status = 409
    title = "Something else is stored under this name"


class InUse(FlattenGPTError):
    code = "in_use"
    status = 409
    title = "A job that has not ended names it"


class UploadRefused(InvalidRequest):
    code = "upload_refused"
    title = "The upload cannot be used"


class UploadTooLarge(FlattenGPTError):
    code = "content_too_large"
    status = 413
    title = "Content Too Large"


class NoRoom(FlattenGPTError):
    code = "no_room"
    status = 507
    title = "The service's disk has no room for the upload"
    retryable = True


class MissingExtra(FlattenGPTError):
    code = "missing_extra"
    title = "A part of the installation is missing"
