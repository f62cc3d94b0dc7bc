"""The one error hierarchy: the base of what the API answers, a job records and the command line prints.

Each class carries a stable `code`, the HTTP `status` the API gives it, a `title` and whether trying the same
request again can help. Messages say what was wrong, where, and what to do; they never hold a secret.
"""

from typing import Any, ClassVar


class FlattenGPTError(Exception):
    """An error that a user can be told about.

    Args:
        message: what was wrong and what to do, in one or two sentences.
        field: the request field that is to blame, dotted (`calibration.dataset`), if one is.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Something went wrong inside FlattenGPT"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field

    def as_dict(self) -> dict[str, Any]:
        """The error as a job's `error` and as the extension members of a problem+json document."""
        body: dict[str, Any] = {
            "code": self.code,
            "title": self.title,
            "message": self.message,
            "retryable": self.retryable,
        }
        if self.field is not None:
            body["field"] = self.field
        return body


class InvalidRequest(FlattenGPTError):
    code = "invalid_request"
    status = 422
    title = "The request is not valid"


class InvalidTarget(InvalidRequest):
    code = "invalid_target"
    title = "The target size is not possible for this model"


class ModelNotFound(InvalidRequest):
    code = "model_not_found"
    title = "The model is not there"


class ModelGated(ModelNotFound):
    code = "model_gated"
    title = "The model is gated, and the token has no access"


class ModelRenamed(ModelNotFound):
    code = "model_renamed"
    title = "The model has another name now"


class UnsupportedModel(InvalidRequest):
    code = "unsupported_model"
    title = "The model is not of a supported kind"


class CalibrationNotFound(InvalidRequest):
    code = "calibration_not_found"
    title = "The text cannot be loaded"


class CheckpointNotWritten(FlattenGPTError):
    code = "checkpoint_not_written"
    title = "The state of the training could not be saved"


class RecoveryFailed(FlattenGPTError):
    code = "recovery_failed"
    title = "The training after compression failed"
