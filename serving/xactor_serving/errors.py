"""The answers that are errors: `{"error": {"code", "message", "request_id"}}`."""

from dataclasses import dataclass
from typing import Any


@dataclass(eq=False)
class ServiceError(Exception):
    """One of the table below.

    Attributes:
        code: a word for programs. message: one line for people. retry_after_s: when it is worth another try.
    """

    status: int
    code: str
    message: str
    retry_after_s: int | None = None

    def __str__(self) -> str:
        return self.message

    def body(self, request_id: str) -> dict[str, Any]:
        return {"error": {"code": self.code, "message": self.message, "request_id": request_id}}

    def headers(self) -> dict[str, str]:
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}


def bad_input(message: str) -> ServiceError:
    """What cannot be decoded, or has no face."""
    return ServiceError(400, "bad_input", message)


def bad_key() -> ServiceError:
    return ServiceError(401, "bad_key", "an API key is needed: Authorization: Bearer KEY")


def not_found(path: str) -> ServiceError:
    return ServiceError(404, "not_found", f"there is nothing at {path}")


def wrong_method(method: str, path: str) -> ServiceError:
    return ServiceError(405, "wrong_method", f"{method} is not for {path}")


def too_large(message: str) -> ServiceError:
    return ServiceError(413, "too_large", message)


def wrong_type(message: str) -> ServiceError:
    return ServiceError(415, "wrong_type", message)


def bad_option(message: str) -> ServiceError:
    return ServiceError(422, "bad_option", message)


def too_many(message: str) -> ServiceError:
    """One client has as much as it may."""
    return ServiceError(429, "too_many", message, retry_after_s=5)


def full(message: str) -> ServiceError:
    """The service has as much as it can."""
    return ServiceError(503, "full", message, retry_after_s=5)


def broken(message: str) -> ServiceError:
    """Replicas failed, and trying again did not help."""
    return ServiceError(503, "broken", message, retry_after_s=30)


def timed_out(message: str) -> ServiceError:
    return ServiceError(504, "timed_out", message)
