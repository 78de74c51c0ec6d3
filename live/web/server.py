"""The session in a browser on this machine: video, state, timeline, marks and the keys as buttons.

The server listens on 127.0.0.1 only. The printed link holds a token that works once and is exchanged for a
cookie of this port's name; every request must name this host and come from this page's origin; nothing is
served but the page itself and its one web socket. The page answers each picture that it has drawn, and only
then gets another: a browser that is slow sees the newest picture, never a queue of old ones.
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

from live.session import Session
from live.ui.drawing import Colour, TimelinePoint, colour_of, row_s
from live.ui.overlay import filled_line, headline, normal_line
from seqmodel.runs.training_stats import level_of

PAGE = Path(__file__).with_name("page.html")
KEYS = frozenset("qprcxg 0123456789")
DRAWN = "drawn"
"""What the page answers once a picture is on the screen."""
PICTURE_S = 1 / 20
"""A browser gets at most twenty pictures a second: enough to look alive, little work for the machine."""
RECENT = 60
"""Moments of the timeline in each message: what a slow page missed since the last one, marks above all."""
JPEG_QUALITY = 80
GOODBYE_S, STOP_S = 5.0, 3.0
"""Longest waits at the end: for the pages to hear of it and leave, and for the server to stop."""


class BrowserView:
    """Serves one session until closed; `address` is the link to open."""

    shows_overlay = False

    def __init__(self, port: int, session: Session) -> None:
        """Raises ValueError when the port is taken."""
        self._socket = _listen(port)
        self._port = self._socket.getsockname()[1]
        # A browser keeps cookies by host, whatever the port: another session's must not replace this one's.
        self._cookie_name = f"brainbuddy-{self._port}"
        self._token, self._cookie = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        self._token_is_fresh = True
        self._session = session
        self._keys: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._num_watching = self._version = 0
        self._jpeg, self._news = b"", "{}"
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
        """The link to open; it works once, and again where it was opened."""
        return f"http://127.0.0.1:{self._port}/?token={self._token}"

    @property
    def is_watched(self) -> bool:
        """Whether a browser is connected."""
        return self._num_watching > 0

    def show(self, picture: np.ndarray) -> None:
        """Publish a picture, uint8 (H, W, 3) RGB, and what the session says now."""
        done, encoded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        assert done
        self._jpeg = encoded.tobytes()
        self._publish()

    def keys(self) -> str:
        """Keys pressed on the page since last asked."""
        return "".join(self._keys.get() for _ in range(self._keys.qsize()))

    def close(self) -> None:
        """Tell the pages that the session is over, and stop."""
        self._ended = True
        self._publish()
        deadline = time.monotonic() + GOODBYE_S
        while self.is_watched and time.monotonic() < deadline:
            time.sleep(PICTURE_S)  # each page leaves once it has drawn the end
        self._server.should_exit = True
        self._thread.join(STOP_S)
        self._socket.close()

    def _publish(self) -> None:
        # One assignment each: without a lock the server's thread at worst sees a mixed pair once.
        self._news = json.dumps(snapshot(self._session) | {"ended": self._ended}, ensure_ascii=False)
        self._version += 1

    async def _page(self, request: Request) -> Response:
        """The page for who has the cookie; the cookie for who has the fresh token; 403 for all others."""
        token = request.query_params.get("token")
        if token is not None:
            if self._knows(request):
                return RedirectResponse("/", 303)
            if not (self._token_is_fresh and hmac.compare_digest(token.encode(), self._token.encode())):
                return PlainTextResponse("This link is wrong or was used before.", 403)
            self._token_is_fresh = False
            # Without the token in its address, the page can be reloaded and is no secret in the history.
            answer = RedirectResponse("/", 303)
            answer.set_cookie(self._cookie_name, self._cookie, httponly=True, samesite="strict")
            return answer
        if not self._knows(request):
            return PlainTextResponse("Open the link that the program printed.", 403)
        nonce = secrets.token_urlsafe(16)
        page = PAGE.read_text(encoding="utf-8").replace("{{nonce}}", nonce)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src blob:; "
            f"connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
        )
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    async def _web_socket(self, web_socket: WebSocket) -> None:
        own = {f"http://127.0.0.1:{self._port}", f"http://localhost:{self._port}"}
        if not self._knows(web_socket) or web_socket.headers.get("origin") not in own:
            await web_socket.close(1008)  # before accepting: the browser sees 403
            return
        await web_socket.accept()
        self._num_watching += 1
        waiting: collections.deque[int] = collections.deque()  # versions sent and not drawn yet
        hears = asyncio.create_task(self._hear(web_socket, waiting))
        try:
            await web_socket.send_text(json.dumps(self._greeting()))
            async for version in self._changes(hears, waiting):
                waiting.append(version)
                await web_socket.send_text(self._news)
                await web_socket.send_bytes(self._jpeg)
        except (WebSocketDisconnect, RuntimeError):
            pass  # the browser went away in the middle of a message
        finally:
            self._num_watching -= 1
            hears.cancel()

    async def _changes(self, hears: "asyncio.Task[None]", waiting: Sequence[int]) -> AsyncIterator[int]:
        """Each time there is something new and the page has drawn the last, at most every PICTURE_S, until
        the browser goes; that the session ended is told at once, and the page leaves by itself."""
        version = 0  # before the first picture there is nothing to say
        while not hears.done():
            if version != self._version and (self._ended or not waiting):
                version = self._version
                yield version
            await asyncio.sleep(PICTURE_S)

    async def _hear(self, web_socket: WebSocket, waiting: "collections.deque[int]") -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            while True:
                shown = await web_socket.receive_text()
                if shown in KEYS:
                    self._keys.put(shown)
                elif shown == DRAWN and waiting:
                    waiting.popleft()

    def _knows(self, connection: HTTPConnection) -> bool:
        return hmac.compare_digest(
            connection.cookies.get(self._cookie_name, "").encode(), self._cookie.encode()
        )

    def _greeting(self) -> dict[str, Any]:
        """The classes, their colours and the timeline so far."""
        names = self._session.names
        colours = [_css(colour_of("ok", place / (len(names) - 1))) for place in range(len(names))]
        return {"names": names, "colours": colours, "past": [_point(m) for m in list(self._session.points)]}


class OwnHostOnly:
    """Refuses requests that were sent to another name, as a foreign page that rebinds its name would."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self.app = app
        self._hosts = {f"127.0.0.1:{port}".encode(), f"localhost:{port}".encode()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 403."""
        if dict(scope.get("headers", [])).get(b"host") not in self._hosts:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await PlainTextResponse("Not this host.", 403)(scope, receive, send)
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
    """What a page shows of a session now, ready for JSON."""
    last = session.last
    state = session.absent or (last.state if last else "warming_up")
    news: dict[str, Any] = {
        "state": state,
        "words": headline(last, state),
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
        news |= {
            "p": [round(p, 4) for p in last.p],
            "level": round(float(level_of(last.p, last.task)), 4),
            "task": last.task,
            "coverage": round(last.coverage, 3),
            "latency_ms": round(last.latency_ms, 1),
            "filled": filled_line(last),
            "normal": normal_line(last),
        }
        if session.shows_signals and session.absent is None:
            news["signals"] = {name: round(value, 3) for name, value in last.signals.items()}
    return news


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
    """A socket on the loopback address. Raises ValueError when the port is taken."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if (
            os.name == "posix"
        ):  # for a port that was just let go of; on Windows it lets two sessions share one
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        listener.close()
        raise ValueError(
            f"port {port} on 127.0.0.1 cannot be used ({error.strerror}); try --port 0 for any free one"
        ) from error
    listener.listen(16)
    return listener
