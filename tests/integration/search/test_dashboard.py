"""optuna-dashboard shows the journal of a search in a real browser."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import run_here
from tests.support.toy_sequences import write_toy_store

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
    None,
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]
DRAWN = """few => {
    const plots = [...document.querySelectorAll(".js-plotly-plot")].filter(p => p.data && p.data.length);
    return plots.length >= few && plots.some(p => p.data.some(d => d.x && d.x.length >= 5));
}"""
"""Whether that many plots have data, and one of them a mark for each of the five trials."""
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt install chromium)"),
]


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of the command that a search of five trials prints at its end."""
    folder = tmp_path_factory.mktemp("실행")
    argv = [
        "--store",
        write_toy_store(folder),
        "--out",
        folder / "내 run",
        "--trials",
        "5",
        "--workers",
        "1",
    ]
    argv += ["--epochs", "2", "--pruning", "off", "--study", "heads of the demo"]
    done = run_here("tune", *argv, SLURM_CPUS_PER_TASK="1")
    assert done.returncode == 0, done.stderr
    found = re.search(r"to view the study: (optuna-dashboard .*)", done.stderr)
    assert found is not None, done.stderr
    return shlex.split(found[1])


@pytest.fixture(scope="module")
def address(printed: list[str]) -> Iterator[str]:
    """Address at which the printed command serves the study."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name(printed[0])), *printed[1:], "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        url = f"http://127.0.0.1:{port}"
        try:
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"{url}/api/studies", timeout=5).read()
                    break
                except OSError:
                    assert server.poll() is None, "optuna-dashboard ended at once"
                    time.sleep(0.5)
            yield url
        finally:
            server.terminate()


def test_the_dashboard_shows_the_study_and_its_plots(address: str, tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    shots = Path(os.environ.get("BRAINBUDDY_SHOTS", tmp_path))
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"{address}/dashboard", wait_until="domcontentloaded", timeout=120_000)
        page.get_by_text("heads of the demo").first.wait_for(timeout=120_000)
        for place, titles, few in (
            ("studies/0", ("History", "Hyperparameter Importance", "Timeline"), 3),
            ("studies/0/analytics", ("Slice", "Contour"), 3),
        ):
            page.goto(f"{address}/dashboard/{place}", wait_until="domcontentloaded", timeout=120_000)
            for title in titles:
                page.get_by_role("heading", name=title, exact=True).wait_for(timeout=120_000)
            page.wait_for_function(DRAWN, arg=few, timeout=120_000)
            page.screenshot(path=shots / f"{place.replace('/', '_')}.png")
        assert not problems
        browser.close()
