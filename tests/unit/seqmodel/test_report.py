"""Claims about the report as a page: complete, offline, right on screens wide and narrow."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import optuna
import pytest
from matplotlib import font_manager
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from seqmodel.__main__ import main
from seqmodel.evaluation import folds
from seqmodel.reporting.content import result_plots, training_figures
from seqmodel.reporting.plots_metrics import confusion_plot
from seqmodel.reporting.plots_people import scatter_plot
from seqmodel.reporting.search_history import trials_of
from seqmodel.reporting.style import CJK_FONT_FILES, CJK_FONTS, hangul_fonts, save, style
from seqmodel.reporting.text import forest, metric_rows, percent, short
from seqmodel.runs.card import load_card, save_card
from tests.support.judged import WITH_GEOMETRY, evaluated, make_run, make_store, people

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(autouse=True)
def no_figure_left_open() -> Iterator[None]:
    """Those that are looked at here are saved by nobody."""
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """An evaluated run whose names try to break out of the page."""
    root = tmp_path_factory.mktemp("report")
    names = ("<b>멍함</b>", "집중 & co")
    store = make_store(root / "s.zarr", names=names, signal=0.3, num_subjects=30)
    make_run(root / "run", store, epochs=3)
    assert main(["evaluate", "--run", str(root / "run"), "--bootstrap-rounds", "100"]) == 0
    return root / "run"


def test_hangul_is_drawn_where_the_cached_list_of_fonts_is_older_than_the_font(monkeypatch, tmp_path):
    manager = font_manager.fontManager
    if not any(Path(file).stem.startswith(CJK_FONT_FILES) for file in font_manager.findSystemFonts()):
        pytest.skip("no font with Hangul is installed (Debian: fonts-noto-cjk)")
    stale = [font for font in manager.ttflist if font.name not in CJK_FONTS]
    monkeypatch.setattr(manager, "ttflist", stale)
    hangul_fonts.cache_clear()
    try:
        assert hangul_fonts()
        with style():
            figure, axes = plt.subplots()
            axes.set_title("집중")
        save(figure, tmp_path / "title.png")  # a missing glyph is a warning, and so an error here
    finally:
        hangul_fonts.cache_clear()


def test_the_page_asks_nobody_for_anything(run):
    page = (run / "report.html").read_text(encoding="utf-8")
    for tag in re.findall(r"<(?:img|script|link|iframe|image|use|source)\b[^>]*>", page):
        assert not re.search(r"(?:src|href)=[\"'](?!data:|#)", tag), tag
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_names_are_text_and_not_markup(run):
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<b>멍함</b>" not in page
    assert "&lt;b&gt;멍함&lt;/b&gt;" in page
    assert "집중 &amp; co" in page


def test_every_drawing_is_in_the_page_and_in_plots(run):
    page = (run / "report.html").read_text(encoding="utf-8")
    drawn = sorted(path.stem for path in (run / "plots").glob("*.png"))
    assert {
        "confusion",
        "roc",
        "precision_recall",
        "reliability",
        "threshold",
        "coverage",
        "subjects",
    } <= set(drawn)
    assert {"learning", "hardest-1"} <= set(drawn)
    for name in drawn:
        assert f'id="{name}-figure_1"' in page, name


def test_ids_are_used_once(run):
    page = (run / "report.html").read_text(encoding="utf-8")
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_with_geometry_the_page_says_what_it_looks_at_and_shows_signals(tmp_path, monkeypatch):
    monkeypatch.setattr(folds, "CANDIDATES", folds.CANDIDATES[:1])
    monkeypatch.setattr(folds, "INNER_FOLDS", 2)
    store = make_store(tmp_path / "s.zarr", signal=0.4, num_subjects=30, recipe=WITH_GEOMETRY)
    make_run(tmp_path / "run", store, epochs=8, inputs="geometry", center="subject")
    assert main(["evaluate", "--run", str(tmp_path / "run"), "--bootstrap-rounds", "50"]) == 0
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert 'id="importance-figure_1"' in page
    section = page[page.index('<section id="importance">') :]
    assert "Most rests on eyes." in section
    for text in ("head pose", "rest of the face", "eyes open", "gaze", "yaw"):
        assert text in section
    # The folds' own heads are asked too, each about people whom it never saw.
    assert main(["evaluate", "--run", str(tmp_path / "run"), "--folds", "3", "--bootstrap-rounds", "50"]) == 0
    page_of_folds = (tmp_path / "run/folds-3/report.html").read_text(encoding="utf-8")
    assert "Most rests on eyes." in page_of_folds[page_of_folds.index('<section id="importance">') :]
    assert "Each fold fits its own on people that it learned from" in page_of_folds
    assert "as validation asked" not in page_of_folds
    assert "as validation asked" in page or "Validation gave no reason" in page
    # In the legend, a colour stands for one baseline.
    kinds = re.findall(r'<li><i class="(logistic_\w+)">', page)
    assert kinds == ["logistic_embeddings", "logistic_geometry"]
    colours = [re.findall(rf"\.{kind} {{ background: (var\(--[\w-]+\))", page) for kind in kinds]
    assert len(colours[0]) == len(colours[1]) == 2
    assert not set(colours[0]) & set(colours[1])


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt install chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it_without_error_request_or_sideways_scroll(run, scheme):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        try:
            for width in (1280, 390):
                page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
                predicted, context = [], []
                page.on("console", lambda message, predicted=predicted: predicted.append(message.text))
                page.on("pageerror", lambda error, predicted=predicted: predicted.append(str(error)))
                page.on("request", lambda request, context=context: context.append(request.url))
                page.goto((run / "report.html").as_uri())
                assert predicted == []
                assert [url for url in context if not url.startswith(("file:", "data:"))] == []
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                empty = page.evaluate(
                    "[...document.querySelectorAll('svg, img')].filter(e => e.getBoundingClientRect().width "
                    "< 20 || e.getBoundingClientRect().height < 20 || (e.tagName == 'IMG' && "
                    "!e.naturalWidth)).length"
                )
                assert empty == 0
                assert page.locator("svg").count() >= 10
                page.close()
        finally:
            browser.close()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt install chromium")
def test_printed_it_is_dark_on_white_within_the_sheet(run):
    """On A4 (794 pixels of 1/96 inch), also for somebody whose screen is dark."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        try:
            page = browser.new_page(viewport={"width": 794, "height": 1123}, color_scheme="dark")
            page.goto((run / "report.html").as_uri())
            page.emulate_media(media="print")
            assert not page.locator("nav.contents").is_visible()
            assert page.evaluate("document.documentElement.scrollWidth") <= 794
            parts = "[...document.querySelectorAll('td, svg, p, pre')]"
            assert page.evaluate(f"{parts}.filter(e => e.getBoundingClientRect().right > 794).length") == 0
            colours = page.evaluate(
                "(s => [s.getPropertyValue('--ink').trim(), s.getPropertyValue('--paper').trim()])"
                "(getComputedStyle(document.documentElement))"
            )
            assert colours == ["#111", "#fff"]
            assert page.pdf(format="A4").startswith(b"%PDF")
        finally:
            browser.close()


@pytest.mark.parametrize("by_fold", [False, True])
def test_curves_of_trials_may_fall_and_folds_are_no_epochs(run, tmp_path, by_fold):
    """A trial reports the best so far to the pruner; what is drawn is each epoch's own score, or fold's."""
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    storage = JournalStorage(JournalFileBackend(str(copy / "study.log")))
    study = optuna.create_study(storage=storage, study_name="search", direction="maximize")
    reported = {0: 0.7, 1: 0.9, 2: 0.6} if by_fold else {1: 0.7, 2: 0.9, 3: 0.9}
    attributes, value = {"val_curve": [0.7, 0.9, 0.6]}, 0.73 if by_fold else 0.9
    study.add_trial(
        optuna.trial.create_trial(value=value, intermediate_values=reported, user_attrs=attributes)
    )
    assert trials_of(copy) == [], "the head came from no search: its card names none"
    save_card(copy, replace(load_card(copy), stages=({"stage": "head", "study": "search"},)))
    (trial,) = trials_of(copy)
    assert (trial.value, trial.curve, trial.by_fold) == (value, (0.7, 0.9, 0.6), by_fold)
    axes = training_figures(copy, load_card(copy))["trials"].axes[0]
    assert axes.get_xlabel() == ("fold" if by_fold else "epoch")
    assert axes.lines[0].get_xydata().tolist() == [[1, 0.7], [2, 0.9], [3, 0.6]]
    assert axes.lines[0].get_linestyle() == ("None" if by_fold else "-")


def test_an_abstain_band_is_the_runs_and_not_that_of_folds(run):
    """Heads that were fitted for each fold answer always: no line tells that a band answers all."""
    labels = np.tile([0, 1], 40)
    result = evaluated(labels, np.linspace(0.1, 0.9, 80), people(8, 10), rounds=20)
    card = load_card(run)
    card = replace(card, calibration=replace(card.calibration, abstain=(0.4, 0.6)))

    def predicted(thresholds):
        (axes,) = result_plots(result, card, [], thresholds)["coverage"].axes
        return " ".join(axes.get_legend_handles_labels()[1])

    assert "abstain band" in predicted(0.5)
    assert "abstain band" not in predicted(np.full(80, 0.5))


def test_a_mark_of_evenness_may_mean_too_few_people(run):
    labels = np.tile([0, 1], 50)
    few = evaluated(labels, np.clip(labels, 0.1, 0.9), people(5, 20))
    assert {cell["mark"] for row in metric_rows(few) for cell in row["comparisons"]} <= {"even", ""}
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "≈ it does, or too few people to tell." in page


def test_the_model_card_tells_figures_use_and_limits(run):
    card = (run / "MODEL_CARD.md").read_text(encoding="utf-8")
    for text in (
        "## Intended use",
        "**Not for:**",
        "AI Act",
        "## Licences",
        "| AUROC |",
        "By subject",
        "Majority-class baseline",
    ):
        assert text in card
    assert "nan" not in card.lower().split()
    # Tables hold together: every row of a table has as many cells as its head.
    for block in re.findall(r"(?:^\|.*\n)+", card, flags=re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1, block


def test_the_literature_row_takes_the_likeliest_class(run):
    text = (run / "literature.csv").read_text(encoding="utf-8").splitlines()
    assert text[0].startswith("method,clips,accuracy,weighted F1")
    assert text[-1].startswith("majority class")


def test_yardsticks_in_one_place_hide_nobody():
    """Where nobody's usual answer tells anything, the majority and the identity have the same figures."""
    labels, who = np.tile([0, 1], 100), people(10, 20)
    rows = forest(evaluated(labels, np.full(200, 0.6), who))
    auroc = rows[0]["ticks"]
    assert [tick["at"] for tick in auroc] == [50, 50]
    assert [(tick["top"], tick["height"]) for tick in auroc] == [(0, 0.5), (0.5, 0.5)]
    apart = forest(evaluated(np.repeat([0, 1], 100), np.full(200, 0.6), who))[0]["ticks"]
    assert {(tick["top"], tick["height"]) for tick in apart} == {(0, 1)}
    assert len({tick["at"] for tick in apart}) == 2


def test_figures_are_written_as_this_field_does():
    assert [short(v) for v in (0.8731, 1.0, -0.25, 12.5, float("nan"), None)] == [
        ".873",
        "1.000",
        "-.250",
        "12.500",
        "–",
        "–",
    ]


def test_a_share_is_never_all_or_nothing_where_it_is_not():
    predicted = [0, 1e-9, 0.004, 0.5, 0.985, 0.9951, 0.9997, 1, float("nan"), None]
    assert [percent(v) for v in predicted] == [
        *("0 %", "0.1 %", "0.4 %", "50 %", "98 %", "99.5 %", "99.9 %", "100 %", "–", "–")
    ]


@pytest.mark.parametrize("names", [(r"$\frac$", "$a$"), ("$x_1$", "$")])
def test_names_are_no_formulas_in_drawings(tmp_path, names):
    """Of classes and of people, between two dollars too."""
    places, index = np.random.default_rng(0).normal(size=(20, 2)), np.tile([0, 1], 10)
    drawn = {
        "confusion": confusion_plot(np.array([[7, 3], [2, 8]]), names),
        "umap_subject": scatter_plot(places, index, names, by_class=False),
    }
    for name, figure in drawn.items():
        svg = save(figure, tmp_path / f"{name}.png")
        assert all(f">{text}</text>" in svg for text in names)
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
