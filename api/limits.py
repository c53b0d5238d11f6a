"""Refuse bodies that are larger than any valid request, before they are read into memory."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import Problem

# A hundred times the largest valid body, which is one with a manifest.
MAX_BODY_BYTES = 64 * 1024
# By path: a list of objects to adopt is longer. `adoptions.MOST` are read at a shell.
LONGER = {"/v1/resources:adopt": 1024 * 1024}


class BodyLimit:
    """Answers 413 when the declared length is too large, or as soon as too many bytes have arrived."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and count the bytes of its body."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        most = LONGER.get(scope["path"], MAX_BODY_BYTES)
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > most:
            return await _too_large(most)(scope, receive, send)
        seen = 0
        answered = False

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most:
                raise _Overflow
            return message

        async def remembered(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            return await self.app(scope, counted, remembered)
        except _Overflow:
            if not answered:
                await _too_large(most)(scope, receive, send)


class _Overflow(BaseException):
    """A BaseException, so that no handler of the application catches it."""


def _too_large(most: int) -> ASGIApp:
    return Problem(413, "body_too_large", f"the body is larger than {most} bytes; send a smaller one").response()
