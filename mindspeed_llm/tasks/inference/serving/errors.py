"""Errors as clients of the OpenAI API expect them: a status and an object `{"error": {message, type, param, code}}`."""

from pydantic import ValidationError


class ApiError(Exception):
    """An answer that is an error. The message is for the client; it repeats no more of the request than names."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    @property
    def body(self) -> dict:
        """The error object."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def stopping() -> ApiError:
    """The server ends and takes, or finishes, no more requests."""
    return ApiError(503, "the server is shutting down: ask again later", code="shutting_down")


def invalid(error: ValidationError) -> ApiError:
    """What is wrong with a body, from the first thing that the model of it objects to."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body of the request is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}",
                        code="invalid_json")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"unrecognized request argument: {param}", param=param, code="unknown_parameter")
    text = first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{param}: {text}" if param else text, param=param or None, code="invalid_value")
