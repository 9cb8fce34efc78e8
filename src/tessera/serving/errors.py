"""Errors as OpenAI's clients know them: a status and `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from typing import Any

INVALID = "invalid_request_error"
SERVER = "server_error"
FAULT = "The server had an error while processing your request. Its log tells more."


class ApiError(Exception):
    """A request that is refused, or that failed.

    param: which field of the request is at fault; code: what programs may look at; headers: sent with the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """The error object."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A 400 for a field of the request."""
    return ApiError(400, message, param=param, code=code)


def unsupported(message: str, param: str) -> ApiError:
    """A 400 for something that the protocol has and this server does not."""
    return invalid(message, param, "unsupported_parameter")


def too_large(message: str) -> ApiError:
    """A 413: the body, or what is in it, is over a limit."""
    return ApiError(413, message, code="request_too_large")


def timed_out(seconds: float) -> ApiError:
    """A 408, not to be tried again: the same request would take as long again."""
    message = f"The request took longer than the limit of {seconds:g} seconds. Ask for fewer tokens, or give fewer images."
    return ApiError(408, message, kind="timeout", code="timeout", headers={"x-should-retry": "false"})


def busy(waiting: int, seconds: int) -> ApiError:
    """A 429: the queue is full."""
    return ApiError(
        429,
        f"{waiting} requests are waiting already. Try again in {seconds} seconds.",
        kind="requests",
        code="rate_limit_exceeded",
        headers={"Retry-After": str(seconds)},
    )


def stopping() -> ApiError:
    """A 503: the server is shutting down."""
    return ApiError(503, "The server is shutting down.", kind=SERVER, code="shutting_down")


def fault() -> ApiError:
    """A 500: ours; clients are told nothing of the cause."""
    return ApiError(500, FAULT, kind=SERVER)
