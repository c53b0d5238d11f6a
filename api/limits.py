"""Refuse bodies that no request of ours could need, before they are read into memory."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import Problem

# The largest honest body is a manifest; a hundred times that is 64 KiB.
MAX_BODY_BYTES = 64 * 1024


class BodyLimit:
    """Answers 413 by the declared length, or as soon as more than that arrives undeclared."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, its body counted."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
            return await _too_large()(scope, receive, send)
        seen = 0
        answered = False

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > MAX_BODY_BYTES:
                raise _Overflow
            return message

        async def noted(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            return await self.app(scope, counted, noted)
        except _Overflow:
            if not answered:
                await _too_large()(scope, receive, send)


class _Overflow(BaseException):
    """Passes through every handler of the application on purpose."""


def _too_large() -> ASGIApp:
    return Problem(
        413, "body_too_large", f"the body is larger than {MAX_BODY_BYTES} bytes, and no request needs that"
    ).response()
