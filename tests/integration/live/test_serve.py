"""Tests of live/web/server.py: the page opens only in one browser on this machine."""

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from extract.video.reader import Frame
from live.session import OutputOptions, Session
from live.web.server import DRAWN, BrowserView, _listen, snapshot
from tests.support.clips import face_frames, looped, write_video
from tests.support.predictions import prediction
from tests.support.small_run import write_run

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)


@pytest.fixture
def session() -> Session:
    """A session without files, with one point on its timeline."""
    session = Session(("distracted", "engaged"), OutputOptions())
    session.add_frame(Frame(0.0, np.zeros((48, 64, 3), np.uint8)), prediction())
    return session


@pytest.fixture
def view(session: Session) -> Iterator[BrowserView]:
    """A server on a free port."""
    view = BrowserView(0, session)
    yield view
    view.close()


def get(view: BrowserView, path: str, method: str = "GET", **headers: str) -> http.client.HTTPResponse:
    """One raw request, without the checks of a browser."""
    port = urlsplit(view.address).port
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    response.body = response.read()  # type: ignore[attr-defined]
    connection.close()
    return response


def test_wrong_token_gets_403(view: BrowserView) -> None:
    """No token, a wrong token and an old cookie do not open the page."""
    assert get(view, "/").status == 403
    assert get(view, "/?token=guess").status == 403
    assert get(view, "/", Cookie=f"brainbuddy-{urlsplit(view.address).port}=guess").status == 403
    assert get(view, "/?token=%EC%A7%91%EC%A4%91").status == 403


def test_link_works_once_and_sets_a_cookie(view: BrowserView) -> None:
    """The token is exchanged for a cookie that scripts cannot read; a second use is refused."""
    parts = urlsplit(view.address)
    first = get(view, f"/?{parts.query}")
    assert first.status == 303
    assert first.headers["location"] == "/"
    cookie = first.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert get(view, f"/?{parts.query}").status == 403
    page = get(view, "/", Cookie=cookie.split(";")[0])
    assert page.status == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert b"{{" not in page.body  # type: ignore[attr-defined]


def test_page_shows_the_notice_of_the_session(view: BrowserView, session: Session) -> None:
    session.notice = "SYNTHETIC DATA: <one> portrait"
    cookie = get(view, f"/?{urlsplit(view.address).query}").headers["set-cookie"]
    page = get(view, "/", Cookie=cookie.split(";")[0])
    assert b">SYNTHETIC DATA: &lt;one&gt; portrait</div>" in page.body  # type: ignore[attr-defined]


def test_link_preview_leaves_the_link_unused(view: BrowserView) -> None:
    """Programs that show links ask with HEAD; they get no cookie."""
    link = f"/?{urlsplit(view.address).query}"
    assert get(view, link, "HEAD").headers["set-cookie"] is None
    assert get(view, link).status == 303


def test_refused_request_gets_a_page_that_says_what_to_do(view: BrowserView) -> None:
    """A used link, a wrong one and none: use the first browser, copy the link again, or start again."""
    link = f"/?{urlsplit(view.address).query}"
    get(view, link)
    for path in (link, "/?token=guess", "/"):
        refused = get(view, path)
        assert refused.status == 403
        assert refused.headers["content-type"].startswith("text/html")
        for advice in (b"opened the link first", b"copy it from the terminal", b"start it again"):
            assert advice in refused.body  # type: ignore[attr-defined]


def test_page_says_from_its_start_whether_it_is_recorded(
    view: BrowserView, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its web socket is connected, and also with key r before the first picture."""
    monkeypatch.chdir(tmp_path)
    cookie = get(view, f"/?{urlsplit(view.address).query}").headers["set-cookie"].split(";")[0]
    for text in ("local only, not recording", "● recording"):
        page = get(view, "/", Cookie=cookie).body.decode()  # type: ignore[attr-defined]
        assert f'<div id="recording">{text}</div>' in page
        session.toggle_recording()


def test_link_works_again_in_the_browser_with_the_cookie(view: BrowserView) -> None:
    """A request with the cookie gets the page for any token; others get 403."""
    used = f"/?{urlsplit(view.address).query}"
    cookie = get(view, used).headers["set-cookie"].split(";")[0]
    for path in (used, "/?token=guess"):
        again = get(view, path, Cookie=cookie)
        assert (again.status, again.headers["location"]) == (303, "/")
        assert again.headers["set-cookie"] is None
        assert get(view, path).status == 403


def test_two_sessions_in_one_browser_have_their_own_cookies(view: BrowserView, session: Session) -> None:
    """Browsers store cookies by host, not by port: each session has its own cookie name."""
    other = BrowserView(0, session)
    kept: dict[str, str] = {}
    for each in (view, other):
        set_cookie = get(each, f"/?{urlsplit(each.address).query}").headers["set-cookie"]
        name, value = set_cookie.split(";")[0].split("=", 1)
        kept[name] = value
    jar = "; ".join(f"{name}={value}" for name, value in kept.items())
    assert [get(each, "/", Cookie=jar).status for each in (view, other)] == [200, 200]
    other.close()


def test_another_host_name_gets_403(view: BrowserView) -> None:
    """A foreign page whose host name points to this server is refused first."""
    token = urlsplit(view.address).query
    assert get(view, f"/?{token}", Host="evil.example").status == 403
    assert get(view, f"/?{token}").status == 303  # and the token is still unused


def test_another_origin_gets_no_web_socket(view: BrowserView) -> None:
    """The socket is refused with the cookie but from another page."""
    token = urlsplit(view.address).query
    cookie = get(view, f"/?{token}").headers["set-cookie"].split(";")[0]
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Cookie": cookie,
    }
    own = view.address.split("/?")[0]
    assert get(view, "/ws", **upgrade, Origin="http://evil.example").status == 403
    assert get(view, "/ws", **upgrade).status == 403
    wrong = cookie.split("=")[0] + "=guess"
    assert get(view, "/ws", **upgrade | {"Cookie": wrong}, Origin=own).status == 403


def test_slow_page_gets_the_newest_picture(view: BrowserView) -> None:
    """The next picture is sent after the last is drawn, and is the newest; the end is sent at once."""
    response = get(view, f"/?{urlsplit(view.address).query}")
    cookie = response.headers["set-cookie"].split(";")[0]
    own = view.address.split("/?")[0]
    with connect(
        own.replace("http", "ws") + "/ws", additional_headers={"Cookie": cookie}, origin=Origin(own)
    ) as socket:
        assert "names" in json.loads(socket.recv(timeout=10))
        view.show(np.full((8, 8, 3), 10, np.uint8))
        assert mean_shade(socket) == pytest.approx(10, abs=2)
        for shade in (100, 200):
            view.show(np.full((8, 8, 3), shade, np.uint8))
        with pytest.raises(TimeoutError):
            socket.recv(timeout=0.3)
        socket.send(DRAWN)
        assert mean_shade(socket) == pytest.approx(200, abs=2)
        closes = threading.Thread(target=view.close)
        closes.start()
        assert json.loads(socket.recv(timeout=10))["ended"]
    closes.join(10)
    assert not closes.is_alive()


def mean_shade(socket: ClientConnection) -> float:
    """The state, then the mean of the picture."""
    assert not json.loads(socket.recv(timeout=10))["ended"]
    jpeg = socket.recv(timeout=10, decode=False)
    return float(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).mean())


def test_other_paths_are_not_served(view: BrowserView) -> None:
    """No files, no API."""
    cookie = get(view, f"/?{urlsplit(view.address).query}").headers["set-cookie"].split(";")[0]
    for path in ("/docs", "/../pyproject.toml", "/static/live.html", "/openapi.json"):
        assert get(view, path, Cookie=cookie).status == 404


def test_server_listens_only_on_loopback(view: BrowserView) -> None:
    """Bound to the loopback address, not to all addresses."""
    assert view._socket.getsockname()[0] == "127.0.0.1"


def test_taken_port_is_one_line(view: BrowserView, session: Session) -> None:
    """The reason and the remedy."""
    port = urlsplit(view.address).port
    assert port is not None
    with pytest.raises(ValueError, match="--port 0"):
        BrowserView(port, session)


@pytest.mark.parametrize("system", ["posix", "nt"])
def test_two_sessions_never_share_a_port(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows the option for fast reuse of a port would allow this."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "name", system)
        listener = _listen(0)
    with listener:
        assert bool(listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)) == (system == "posix")


def test_snapshot_is_valid_json(session: Session) -> None:
    """NaN is not valid JSON."""
    session.add_gap(9.0, "camera_lost")
    text = json.dumps(snapshot(session), allow_nan=False)
    assert json.loads(text)["headline"] == "camera lost"


@pytest.mark.parametrize(("fps", "row_s"), [(3, 1.0), (0.5, 4.0)])
def test_snapshot_has_the_length_of_a_point(fps: float, row_s: float) -> None:
    """A session slower than one frame/s has no holes in its timeline."""
    session = Session(("distracted", "engaged"), OutputOptions())
    for k in range(20):
        session.add_frame(Frame(k / fps, np.zeros((48, 64, 3), np.uint8)), replace(prediction(), t_s=k / fps))
    assert snapshot(session)["row_s"] == pytest.approx(row_s)


def until(page: "Page", condition: str) -> None:
    """Wait until an expression is true on the page (whose policy forbids playwright's own way, eval)."""
    deadline = time.monotonic() + 90
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(50)


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: apt install chromium")
def test_serve_command_serves_a_browser(
    real_clips: dict[str, Path], detector_path: Path, landmarker_path: Path, tmp_path: Path
) -> None:
    """`python -m live --serve` on a file, as a process: the printed link opens, the timeline moves, a wrong
    token gets 403, signals show on request, and the quit button of a slow page ends the process."""
    from playwright.sync_api import sync_playwright

    run = write_run(
        tmp_path / "run", detector_path, landmarker=landmarker_path, inputs=("embeddings", "geometry")
    )
    # Long enough for a browser that starts slowly.
    video = write_video(tmp_path / "long.mp4", looped(face_frames(real_clips["pexels"], 50), 1800), 10)
    argv = ["--run", str(run), "--video", str(video), "--serve", "--port", "0", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "live", *argv],
        cwd=Path(__file__).resolve().parents[3],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={**os.environ, "COLUMNS": "200"},
    )
    assert process.stderr is not None
    try:
        line = next(line for line in process.stderr if "http://" in line)
        address = line[line.index("http://") :].split()[0]
        with sync_playwright() as playwright:
            options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
            page = browser.new_page()
            wrong = page.goto(address.split("=")[0] + "=guess")
            assert wrong is not None
            assert wrong.status == 403
            page.goto(address)
            until(page, "+document.querySelector('#timeline').dataset.moments > 3")
            count = page.evaluate("+document.querySelector('#timeline').dataset.moments")
            until(page, f"+document.querySelector('#timeline').dataset.moments > {count}")
            page.click("text=signals")
            until(page, "document.querySelectorAll('#signals meter').length === 3")
            # A browser that is too slow for twenty pictures/s does not get a queue of old pictures.
            page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": 20})
            count = page.evaluate("+document.querySelector('#timeline').dataset.moments")
            until(page, f"+document.querySelector('#timeline').dataset.moments > {count} + 6")
            page.click("text=quit")
            until(page, "document.querySelector('#headline').textContent === 'session ended'")
            browser.close()
        out, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
    assert json.loads(out)["rows"] >= count


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: apt install chromium")
def test_page_shows_a_moving_timeline_and_sends_keys(
    view: BrowserView, session: Session, real_clips: dict[str, Path], tmp_path: Path
) -> None:
    """In headless Chromium, with a real file: pictures change, the timeline grows, marks show, keys
    arrive."""
    from playwright.sync_api import sync_playwright

    from extract.video.reader import read_video

    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            for frame in read_video(real_clips["carphone"]):
                if stop.is_set():
                    return
                t_s = time.monotonic()
                session.add_frame(frame, replace(prediction(), t_s=t_s))
                if view.is_watched:
                    view.show(session.scene(frame.rgb()))
                pressed.append(view.keys())
                if " " in pressed[-1]:
                    session.mark(t_s, "bell <b>&")
                time.sleep(0.03)

    pressed: list[str] = []
    thread = threading.Thread(target=run)
    thread.start()
    try:
        with sync_playwright() as playwright:
            options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
            page = browser.new_page()
            wrong: list[str] = []
            page.on("pageerror", lambda error: wrong.append(str(error)))
            urls: list[str] = []
            page.on("request", lambda request: urls.append(request.url))
            page.goto(view.address)
            until(page, "document.querySelector('#headline').textContent === 'engaged'")
            until(page, "+document.querySelector('#timeline').dataset.moments > 10")
            count = page.evaluate("+document.querySelector('#timeline').dataset.moments")
            source = page.evaluate("document.querySelector('#video').src")
            until(page, f"+document.querySelector('#timeline').dataset.moments > {count}")
            until(page, f"document.querySelector('#video').src !== {json.dumps(source)}")
            page.keyboard.press(" ")
            until(page, "document.querySelector('#marks').textContent.includes('bell <b>&')")
            page.click("text=calibrate")
            page.wait_for_timeout(300)
            again = browser.new_context().new_page().goto(view.address)
            assert again is not None
            assert again.status == 403
            page.screenshot(path=tmp_path / "page.png")
            own = view.address.split("/?")[0]
            assert all(url.startswith((own, "blob:" + own, own.replace("http", "ws"))) for url in urls), urls
            assert not wrong
            browser.close()
    finally:
        stop.set()
        thread.join()
    assert "c" in "".join(pressed)


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: apt install chromium")
def test_slow_session_has_no_holes_and_a_lost_connection_asks_to_reload(
    view: BrowserView, session: Session
) -> None:
    """One frame every two seconds fills each column of the last three minutes. After a lost connection the
    page asks to reload, and reloading works."""
    from playwright.sync_api import sync_playwright

    for k in range(200):
        session.add_frame(Frame(30.0 + 2 * k, np.zeros((8, 8, 3))), replace(prediction(), t_s=30.0 + 2 * k))
    view.show(np.zeros((8, 8, 3), np.uint8))
    empty = """(() => { const canvas = document.querySelector("#timeline"), {width, height} = canvas;
      const row = canvas.getContext("2d").getImageData(0, height - 1, width, 1).data;
      return [...Array(width).keys()].filter(x => row[4 * x + 3] === 0).length; })()"""
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        page = browser.new_page()
        page.goto(view.address)
        until(page, "document.querySelector('#headline').textContent === 'engaged'")
        assert page.evaluate(empty) == 0
        page.evaluate("socket.close()")
        until(page, "document.querySelector('#message').textContent === 'Connection lost. Reload this page.'")
        page.reload()
        until(page, "document.querySelector('#headline').textContent === 'engaged'")
        browser.close()
