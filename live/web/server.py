"""Browser view of a session on this machine: video, state, timeline, marks, and the keys as buttons.

The server listens only on 127.0.0.1. The printed link has a token that works once and is exchanged for a
cookie; the cookie's name contains the port. A HEAD request (a link preview) does not use the token. Every
request must have this host, and the web socket must have this page's origin. The server serves only the page
and its web socket. The page confirms each picture that it has drawn and only then gets the next: a slow
browser sees the newest picture, not a queue of old ones.
"""

import asyncio
import collections
import contextlib
import hmac
import json
import math
import os
import queue
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from features.cli import UserError
from live.session import Session
from live.ui.drawing import Colour, colour_of
from live.ui.overlay import RECORDING_TEXTS, filled_text, headline
from live.ui.timeline import TimelinePoint, row_s
from seqmodel.runs.training_stats import level_of

PAGE = Path(__file__).with_name("page.html")
REFUSED = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>brainbuddy – this link does not open the session</title>
<h1>This link does not open the session</h1>
<p>The link that the program has printed works in one browser only: the first one that opens it.</p>
<ul>
  <li>Use the browser, and the window (normal or private), that opened the link first.</li>
  <li>If no browser has opened it, the link is incomplete: copy it from the terminal again.</li>
  <li>Otherwise end the session (Ctrl-C in the terminal) and start it again: it prints a new link.</li>
</ul>
</html>
"""
"""The answer to a request without the cookie and without the unused token."""
KEYS = frozenset("qprcxg 0123456789")
DRAWN = "drawn"
"""Message of the page after it has drawn a picture."""
PICTURE_S = 1 / 20
"""Shortest time between two pictures, seconds: at most 20 pictures/s, to limit the load."""
RECENT = 60
"""Number of timeline points per message, so that a slow page gets the points and marks that it missed."""
JPEG_QUALITY = 80
DISCONNECT_S, STOP_S = 5.0, 3.0
"""Longest waits at the end, seconds: for the pages to disconnect, and for the server to stop."""


class BrowserView:
    """Serves one session until `close`; `address` is the link to open."""

    shows_overlay = False

    def __init__(self, port: int, session: Session) -> None:
        """Raises UserError when the port is taken."""
        self._socket = _listen(port)
        self._port = self._socket.getsockname()[1]
        # Browsers share cookies between ports: sessions on two ports need two names.
        self._cookie_name = f"brainbuddy-{self._port}"
        self._token, self._cookie = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        self._token_is_fresh = True
        self._session = session
        self._keys: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._num_pages = self._version = 0
        self._jpeg, self._state_json = b"", "{}"
        self._ended = False
        app = Starlette(
            routes=[Route("/", self._page), WebSocketRoute("/ws", self._web_socket)],
            middleware=[Middleware(OwnHostOnly, port=self._port)],
        )
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                lifespan="off",
                ws="websockets-sansio",
                timeout_graceful_shutdown=1,
            )
        )
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="browser view", daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> str:
        """The link to open; it works once, and again in the browser that opened it."""
        return f"http://127.0.0.1:{self._port}/?token={self._token}"

    @property
    def is_watched(self) -> bool:
        """Whether a browser is connected."""
        return self._num_pages > 0

    def show(self, picture: np.ndarray) -> None:
        """Publish a picture, uint8 (H, W, 3) RGB, and the current state of the session."""
        done, encoded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        assert done
        self._jpeg = encoded.tobytes()
        self._publish()

    def keys(self) -> str:
        """Keys pressed on the page since the last call."""
        return "".join(self._keys.get() for _ in range(self._keys.qsize()))

    def close(self) -> None:
        """Tell the pages that the session is over, and stop."""
        self._ended = True
        self._publish()
        deadline = time.monotonic() + DISCONNECT_S
        while self.is_watched and time.monotonic() < deadline:
            time.sleep(PICTURE_S)  # each page disconnects after it has drawn the end
        self._server.should_exit = True
        self._thread.join(STOP_S)
        self._socket.close()

    def _publish(self) -> None:
        # No lock: in the worst case the server's thread once sends a state with the wrong picture.
        self._state_json = json.dumps(snapshot(self._session) | {"ended": self._ended}, ensure_ascii=False)
        self._version += 1

    async def _page(self, request: Request) -> Response:
        """The page for a request with the cookie, the cookie for the unused token, else 403."""
        if request.method == "HEAD":
            return Response()
        token = request.query_params.get("token")
        if token is not None:
            if self._has_cookie(request):
                return RedirectResponse("/", 303)
            if not (self._token_is_fresh and hmac.compare_digest(token.encode(), self._token.encode())):
                return HTMLResponse(REFUSED, 403)
            self._token_is_fresh = False
            # The redirect removes the token from the address: reload works, and the history has no secret.
            response = RedirectResponse("/", 303)
            response.set_cookie(self._cookie_name, self._cookie, httponly=True, samesite="strict")
            return response
        if not self._has_cookie(request):
            return HTMLResponse(REFUSED, 403)
        nonce = secrets.token_urlsafe(16)
        recording = RECORDING_TEXTS[self._session.recording]
        page = PAGE.read_text(encoding="utf-8").replace("{{nonce}}", nonce)
        page = page.replace("{{recording}}", recording).replace("{{notice}}", escape(self._session.notice))
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src blob:; "
            f"connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
        )
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    async def _web_socket(self, web_socket: WebSocket) -> None:
        origins = {f"http://127.0.0.1:{self._port}", f"http://localhost:{self._port}"}
        if not self._has_cookie(web_socket) or web_socket.headers.get("origin") not in origins:
            await web_socket.close(1008)  # before accepting: the browser sees 403
            return
        await web_socket.accept()
        self._num_pages += 1
        undrawn: collections.deque[int] = collections.deque()  # versions that are sent and not drawn yet
        receiver = asyncio.create_task(self._receive(web_socket, undrawn))
        try:
            await web_socket.send_text(json.dumps(self._greeting()))
            async for version in self._changes(receiver, undrawn):
                undrawn.append(version)
                await web_socket.send_text(self._state_json)
                await web_socket.send_bytes(self._jpeg)
        except (WebSocketDisconnect, RuntimeError):
            pass  # the browser disconnected during a message
        finally:
            self._num_pages -= 1
            receiver.cancel()

    async def _changes(self, receiver: "asyncio.Task[None]", undrawn: Sequence[int]) -> AsyncIterator[int]:
        """A version number whenever there is a new version and the page has drawn the last one.

        At most one per PICTURE_S, until the browser disconnects. The end of the session is sent at once.
        """
        version = 0  # nothing to send before the first picture
        while not receiver.done():
            if version != self._version and (self._ended or not undrawn):
                version = self._version
                yield version
            await asyncio.sleep(PICTURE_S)

    async def _receive(self, web_socket: WebSocket, undrawn: "collections.deque[int]") -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            while True:
                message = await web_socket.receive_text()
                if message in KEYS:
                    self._keys.put(message)
                elif message == DRAWN and undrawn:
                    undrawn.popleft()

    def _has_cookie(self, connection: HTTPConnection) -> bool:
        return hmac.compare_digest(
            connection.cookies.get(self._cookie_name, "").encode(), self._cookie.encode()
        )

    def _greeting(self) -> dict[str, Any]:
        """The classes, their colours and the timeline so far."""
        names = self._session.names
        colours = [_css(colour_of("ok", index / (len(names) - 1))) for index in range(len(names))]
        return {"names": names, "colours": colours, "past": [_point(m) for m in list(self._session.points)]}


class OwnHostOnly:
    """Refuses requests with another host name (protection against DNS rebinding)."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self.app = app
        self._hosts = {f"127.0.0.1:{port}".encode(), f"localhost:{port}".encode()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 403."""
        if dict(scope.get("headers", [])).get(b"host") not in self._hosts:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await PlainTextResponse("Wrong host name.", 403)(scope, receive, send)
            return

        async def send_guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *SAFE_HEADERS]
            await send(message)

        await self.app(scope, receive, send_guarded)


SAFE_HEADERS = [
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
]


def snapshot(session: Session) -> dict[str, Any]:
    """Current state of a session for the page, ready for JSON."""
    last = session.last
    state = session.absent or (last.state if last else "warming_up")
    state_fields: dict[str, Any] = {
        "state": state,
        "headline": headline(last, state),
        "fps": round(session.fps),
        "recording": session.recording,
        "personal": session.personal,
        "message": session.message,
        "label": session.label,
        "row_s": round(row_s(session.timeline), 3),
        "recent": [_point(point) for point in list(session.points)[-RECENT:]],
        "colour": _css(colour_of(state, session.points[-1].tone if session.points else 1.0)),
    }
    if last is not None:
        state_fields |= {
            "p": [round(p, 4) for p in last.p],
            "level": round(float(level_of(last.p, last.task)), 4),
            "task": last.task,
            "coverage": round(last.coverage, 3),
            "latency_ms": round(last.latency_ms, 1),
            "filled": filled_text(last),
        }
        if session.shows_signals and session.absent is None:
            state_fields["signals"] = {name: round(value, 3) for name, value in last.signals.items()}
    return state_fields


def _point(point: TimelinePoint) -> dict[str, Any]:
    return {
        "t": round(point.t_s, 3),
        "level": None if math.isnan(point.level) else round(point.level, 4),
        "colour": _css(colour_of(point.state, point.tone)),
        "mark": point.mark,
    }


def _css(colour: Colour) -> str:
    return "rgb({},{},{})".format(*colour)


def _listen(port: int) -> socket.socket:
    """A listening socket on the loopback address. Raises UserError when the port is taken."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if (
            os.name == "posix"
        ):  # reuse a port that was just closed; on Windows the option would let two sessions share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        listener.close()
        raise UserError(
            f"port {port} on 127.0.0.1 cannot be used ({error.strerror}); use --port 0 for any free port"
        ) from error
    listener.listen(16)
    return listener
