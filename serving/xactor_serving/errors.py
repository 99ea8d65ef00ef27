"""Define the errors of the API. Every error answer is `{"error": {"code", "message", "request_id"}}`.

ServiceError
    400 bad_input      a file cannot be decoded, the image has no face, or the audio is too short
    401 bad_key        the API key is missing or wrong
    404 not_found      no such path
    405 wrong_method   the path does not take this method
    413 too_large      the upload or its headers are too large, or the audio is too long
    415 wrong_type     the body is not multipart/form-data
    422 bad_option     a field is missing, unknown or out of range
    429 too_many       this client has its maximum of requests in progress
    500 failed         the service failed
    503 full, broken, not_ready    the service cannot take the request now
    504 timed_out      a deadline passed
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_MAX_NAMED_ERRORS = 5


@dataclass(eq=False)
class ServiceError(Exception):
    """Represent one error answer of the API."""

    status: int
    """HTTP status code."""
    code: str
    """Machine-readable kind of error, from the table at the top of this file."""
    message: str
    """Description of the error, one line for people."""
    retry_after_s: int | None = None
    """Seconds until a retry may succeed; None if a retry would fail again."""

    def __str__(self) -> str:
        return self.message

    def body(self, request_id: str) -> dict[str, Any]:
        """Return the JSON body of the answer."""
        return {"error": {"code": self.code, "message": self.message, "request_id": request_id}}

    def headers(self) -> dict[str, str]:
        """Return the headers of the answer."""
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}


def bad_input(message: str) -> ServiceError:
    """Return the error for a file that cannot be used, for example because it cannot be decoded or has no face."""
    return ServiceError(400, "bad_input", message)


def bad_key() -> ServiceError:
    """Return the error for a request without a valid API key."""
    return ServiceError(401, "bad_key", "an API key is needed: Authorization: Bearer KEY")


def not_found(path: str) -> ServiceError:
    """Return the error for an unknown path."""
    return ServiceError(404, "not_found", f"no such path: {path}")


def wrong_method(method: str, path: str) -> ServiceError:
    """Return the error for a method that the path does not take."""
    return ServiceError(405, "wrong_method", f"{path} does not take {method}")


def too_large(message: str) -> ServiceError:
    """Return the error for an upload that is too large, or audio that is too long."""
    return ServiceError(413, "too_large", message)


def wrong_type(message: str) -> ServiceError:
    """Return the error for a body that is not multipart/form-data."""
    return ServiceError(415, "wrong_type", message)


def bad_option(message: str) -> ServiceError:
    """Return the error for a field that is missing, unknown or out of range."""
    return ServiceError(422, "bad_option", message)


def too_many(message: str) -> ServiceError:
    """Return the error for a client that has its maximum of requests in progress."""
    return ServiceError(429, "too_many", message, retry_after_s=5)


def full(message: str) -> ServiceError:
    """Return the error for a service that has its maximum of videos in progress or of waiting work."""
    return ServiceError(503, "full", message, retry_after_s=5)


def broken(message: str) -> ServiceError:
    """Return the error for replicas or decoding processes that failed in every retry."""
    return ServiceError(503, "broken", message, retry_after_s=30)


def not_ready(message: str) -> ServiceError:
    """Return the error for a service that cannot make videos yet, or no longer."""
    return ServiceError(503, "not_ready", message, retry_after_s=5)


def ending() -> ServiceError:
    """Return the error for a replica of the ingress that ends. Another one takes the retry."""
    return not_ready("the service is ending")


def failed(message: str) -> ServiceError:
    """Return the error for a fault of the service that has no error of its own."""
    return ServiceError(500, "failed", message, retry_after_s=30)


def timed_out(message: str) -> ServiceError:
    """Return the error for work, or for a client's messages, that passed their deadline."""
    return ServiceError(504, "timed_out", message, retry_after_s=30)


def validation_line(errors: Iterable[Mapping[str, Any]], fields: Iterable[str]) -> str:
    """Return pydantic's first errors as one line: each field, and what is wrong with it.

    Args:
        errors: The errors.
        fields: Names of all fields, for an error that names another one.
    """
    lines = []
    for error in errors:
        field = ".".join(str(part) for part in error["loc"] if part != "body")
        message = str(error["msg"])
        if error["type"] == "extra_forbidden":
            message = f"no such field; there are {', '.join(fields)}"
        elif error["type"].startswith("bool_"):
            message = "must be true or false"
        lines.append(f"{field}: {message}" if field else message)
    return "; ".join(lines[:_MAX_NAMED_ERRORS])
