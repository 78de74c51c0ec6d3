"""Tests of the report page: complete, without network requests, readable on wide and narrow screens."""

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

from features.store.data_statement import TITLES, DataStatement
from seqmodel.__main__ import main
from seqmodel.evaluation import baselines
from seqmodel.reporting import plots_analysis, plots_metrics
from seqmodel.reporting.content import result_plots, training_figures
from seqmodel.reporting.plots_analysis import scatter_plot
from seqmodel.reporting.plots_metrics import confusion_plot
from seqmodel.reporting.search_history import trials_of
from seqmodel.reporting.style import CJK_FONT_FILES, CJK_FONTS, hangul_fonts, save, style
from seqmodel.reporting.text import best_baseline, count, forest, metric_rows, percent, short, stages
from seqmodel.runs.card import card_from_json, card_to_json, load_card, save_card
from tests.support.trained_run import WITH_GEOMETRY, evaluated, make_run, make_store, subject_ids

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(autouse=True)
def no_figure_left_open() -> Iterator[None]:
    """Close the figures that a test did not save."""
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """An evaluated run whose class names contain HTML."""
    root = tmp_path_factory.mktemp("report")
    names = ("<b>멍함</b>", "집중 & co")
    store = make_store(root / "s.zarr", names=names, signal=0.3, num_subjects=30)
    make_run(root / "run", store, epochs=3)
    assert main(["evaluate", "--run", str(root / "run"), "--bootstrap-rounds", "100"]) == 0
    return root / "run"


def test_hangul_font_missing_in_matplotlibs_cached_font_list_is_still_used(monkeypatch, tmp_path):
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


def test_page_has_no_external_references(run):
    page = (run / "report.html").read_text(encoding="utf-8")
    for tag in re.findall(r"<(?:img|script|link|iframe|image|use|source)\b[^>]*>", page):
        assert not re.search(r"(?:src|href)=[\"'](?!data:|#)", tag), tag
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_class_names_are_escaped_in_the_page(run):
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<b>멍함</b>" not in page
    assert "&lt;b&gt;멍함&lt;/b&gt;" in page
    assert "집중 &amp; co" in page


def test_every_plot_is_in_the_page_and_in_the_plots_folder(run):
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


def test_html_ids_are_unique(run):
    page = (run / "report.html").read_text(encoding="utf-8")
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_run_with_geometry_shows_permutation_importance_and_signals(tmp_path, monkeypatch):
    methods = {"logistic": "Logistic regression", "trees": "Extra trees"}
    monkeypatch.setattr(baselines, "METHODS", methods)
    store = make_store(tmp_path / "s.zarr", signal=2.0, num_subjects=30, recipe=WITH_GEOMETRY)
    make_run(tmp_path / "run", store, epochs=8, inputs="geometry")
    assert main(["evaluate", "--run", str(tmp_path / "run"), "--bootstrap-rounds", "50"]) == 0
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert 'id="importance-figure_1"' in page
    section = page[page.index('<section id="importance">') :]
    assert "The most important group is eyes." in section
    for text in ("head pose", "other face features", "eyes open", "gaze", "yaw"):
        assert text in section
    # With --folds, importance comes from the heads of the folds, each on its held-out subjects.
    assert main(["evaluate", "--run", str(tmp_path / "run"), "--folds", "3", "--bootstrap-rounds", "50"]) == 0
    page_of_folds = (tmp_path / "run/folds-3/report.html").read_text(encoding="utf-8")
    assert (
        "The most important group is eyes."
        in page_of_folds[page_of_folds.index('<section id="importance">') :]
    )
    assert "Each fold is calibrated on its own training subjects" in page_of_folds
    assert "on the validation subset" not in page_of_folds
    assert "fitted on the validation subset" in page or "calibration on the validation subset" in page
    # In the legend, each input of a baseline has its own colour.
    kinds = re.findall(r'<li><i class="(\w+_\w+)">', page)
    assert kinds == [f"{method}_{each}" for method in methods for each in ("embeddings", "geometry", "both")]
    inputs = ("_embeddings", "_geometry", "_both")
    found = [re.findall(rf'"{each}"\] {{ background: (var\(--[\w-]+\))', page) for each in inputs]
    assert all(found)
    assert len({colour for colours in found for colour in colours}) == 3


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt install chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_in_a_browser_has_no_error_no_request_and_no_horizontal_scroll(run, scheme):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        try:
            for width in (1280, 390):
                page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
                messages, requests = [], []
                page.on("console", lambda message, messages=messages: messages.append(message.text))
                page.on("pageerror", lambda error, messages=messages: messages.append(str(error)))
                page.on("request", lambda request, requests=requests: requests.append(request.url))
                page.goto((run / "report.html").as_uri())
                assert messages == []
                assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
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
def test_printed_page_is_dark_on_white_and_fits_the_sheet(run):
    """On A4 (794 pixels of 1/96 inch), also where the screen uses dark mode."""
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
def test_trial_curves_show_each_epochs_score_and_fold_scores_have_no_line(run, tmp_path, by_fold):
    """A trial reports the best score so far to the pruner; the plot shows the score of each epoch or fold."""
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    storage = JournalStorage(JournalFileBackend(str(copy / "study.log")))
    study = optuna.create_study(storage=storage, study_name="search", direction="maximize")
    reported = {0: 0.7, 1: 0.9, 2: 0.6} if by_fold else {1: 0.7, 2: 0.9, 3: 0.9}
    attributes, value = {"val_curve": [0.7, 0.9, 0.6]}, 0.73 if by_fold else 0.9
    study.add_trial(
        optuna.trial.create_trial(value=value, intermediate_values=reported, user_attrs=attributes)
    )
    assert trials_of(copy) == [], "the card has no search"
    save_card(copy, replace(load_card(copy), stages=({"stage": "head", "study": "search"},)))
    (trial,) = trials_of(copy)
    assert (trial.value, trial.curve, trial.by_fold) == (value, (0.7, 0.9, 0.6), by_fold)
    axes = training_figures(copy, load_card(copy))["trials"].axes[0]
    assert axes.get_xlabel() == ("fold" if by_fold else "epoch")
    assert axes.lines[0].get_xydata().tolist() == [[1, 0.7], [2, 0.9], [3, 0.6]]
    assert axes.lines[0].get_linestyle() == ("None" if by_fold else "-")


def test_abstain_band_is_not_drawn_for_heads_of_folds(run):
    """The heads of folds have no abstain band, so the plot has no line for it."""
    labels = np.tile([0, 1], 40)
    result = evaluated(labels, np.linspace(0.1, 0.9, 80), subject_ids(8, 10), rounds=20)
    card = load_card(run)
    card = replace(card, calibration=replace(card.calibration, abstain=(0.4, 0.6)))

    def legend(thresholds):
        (axes,) = result_plots(result, card, [], thresholds)["coverage"].axes
        return " ".join(axes.get_legend_handles_labels()[1])

    assert "abstain band" in legend(0.5)
    assert "abstain band" not in legend(np.full(80, 0.5))


def test_few_subjects_give_only_inconclusive_marks(run):
    labels = np.tile([0, 1], 50)
    few = evaluated(labels, np.clip(labels, 0.1, 0.9), subject_ids(5, 20))
    assert {cell["mark"] for row in metric_rows(few) for cell in row["comparisons"]} <= {"even", ""}
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "≈ inconclusive: the interval contains zero, or there are too few subjects." in page


def test_model_card_has_metrics_use_and_limits(run):
    card = (run / "MODEL_CARD.md").read_text(encoding="utf-8")
    for text in (
        "## Intended use",
        "**Not for:**",
        "AI Act, Art. 5(1)(f)",
        "AI Act, Annex III, 1(c)",
        "**Consent:** The person who leads the study asks",
        "features delete STORE --subject ID",
        "## Licences",
        "| AUROC |",
        "By subject",
        "Majority-class baseline",
    ):
        assert text in card
    assert "lesson" not in card
    assert "**By subject**" in card
    assert "nan" not in card.lower().split()
    # Every row of a table has as many cells as its header.
    for block in re.findall(r"(?:^\|.*\n)+", card, flags=re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1, block


STATEMENT = DataStatement(
    name="집중 | 2026",
    licence="CC BY 4.0",
    synthetic=False,
    raters="two teachers",
    num_raters=2,
    recruitment="volunteers of one school",
)


def test_statement_of_the_store_stands_in_card_report_and_model_card(tmp_path):
    make_store(tmp_path / "s.zarr", num_subjects=32, clips_each=2, statement=STATEMENT)  # six are in test
    argv = ["train", "--store", str(tmp_path / "s.zarr"), "--run", str(tmp_path / "run"), "--epochs", "1"]
    assert main([*argv, "--design", "holdout"]) == 0
    assert load_card(tmp_path / "run").data_statement == STATEMENT
    assert main(["evaluate", "--run", str(tmp_path / "run"), "--bootstrap-rounds", "20"]) == 0
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    for row in ("<dt>licence</dt><dd>CC BY 4.0</dd>", "<dt>camera</dt><dd>not stated</dd>"):
        assert row in page
    card = (tmp_path / "run/MODEL_CARD.md").read_text(encoding="utf-8")
    assert "| name | 집중 \\| 2026 |" in card
    assert "| synthetic | no |" in card
    methods = re.sub(r"\s+", " ", page[page.index('<p class="methods">') :])
    for text in (
        "Data: 집중 | 2026 (version: not stated; licence: CC BY 4.0;",
        "Participants: recruitment: volunteers of one school; consent or ethics number: not stated.",
        "raters: two teachers; number of raters: 2; agreement: not stated",
        "windows of 6 s at 1 frames/s",
        "Design: by subject, stratified by class, seed 0; evaluated on test.",
        "no search",
        "bootstrap rounds by subject",
        "Software: python ",
    ):
        assert text in methods, text
    assert "SYNTHETIC" not in page + card


def test_run_without_a_statement_says_not_stated(run):
    """Stores and cards of earlier versions have no statement."""
    card = load_card(run)
    fields = card_to_json(card)
    del fields["data_statement"]
    assert card_from_json(fields) == card
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count("<dd>not stated</dd>") == len(TITLES)
    model_card = (run / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert model_card.count("| not stated |") == len(TITLES)


def test_report_on_synthetic_data_makes_no_claim_about_people(tmp_path, capsys):
    made = replace(STATEMENT, synthetic=True, recruitment="made from one portrait", raters="by construction")
    store = make_store(tmp_path / "s.zarr", num_subjects=12, statement=made)
    make_run(tmp_path / "run", store, epochs=1)
    assert main(["evaluate", "--run", str(tmp_path / "run"), "--bootstrap-rounds", "20"]) == 0
    notice = "SYNTHETIC DATA: made from one portrait, by construction"
    assert capsys.readouterr().err.count(f"warning: {notice}\n") == 1
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    card = (tmp_path / "run/MODEL_CARD.md").read_text(encoding="utf-8")
    for text in (page, card):
        assert notice in text
        assert "Participants: none, the data are synthetic." in text
        assert "not seen in training" not in text
        assert "ubgroup" not in text
        assert "By subject" not in text
    assert 'id="literature"' not in page
    assert not (tmp_path / "run/literature.csv").exists()


def test_literature_csv_has_the_model_and_the_majority_class(run):
    text = (run / "literature.csv").read_text(encoding="utf-8").splitlines()
    assert text[0].startswith("method,clips,accuracy,weighted F1")
    assert text[-1].startswith("majority class")


def test_ticks_of_baselines_at_one_position_are_stacked():
    """Where subjects do not differ, the majority and the identity baseline have the same metrics."""
    labels, subjects = np.tile([0, 1], 100), subject_ids(10, 20)
    rows = forest(evaluated(labels, np.full(200, 0.6), subjects))
    auroc = rows[0]["ticks"]
    assert [tick["at"] for tick in auroc] == [50, 50]
    assert [(tick["top"], tick["height"]) for tick in auroc] == [(0, 0.5), (0.5, 0.5)]
    apart = forest(evaluated(np.repeat([0, 1], 100), np.full(200, 0.6), subjects))[0]["ticks"]
    assert {(tick["top"], tick["height"]) for tick in apart} == {(0, 1)}
    assert len({tick["at"] for tick in apart}) == 2


def test_short_number_has_no_leading_zero():
    assert [short(v) for v in (0.8731, 1.0, -0.25, 12.5, float("nan"), None)] == [
        ".873",
        "1.000",
        "-.250",
        "12.500",
        "–",
        "–",
    ]


def test_percent_is_0_or_100_only_where_exact():
    shares = [0, 1e-9, 0.004, 0.5, 0.985, 0.9951, 0.9997, 1, float("nan"), None]
    assert [percent(v) for v in shares] == [
        *("0 %", "0.1 %", "0.4 %", "50 %", "98 %", "99.5 %", "99.9 %", "100 %", "–", "–")
    ]


@pytest.mark.parametrize("names", [(r"$\frac$", "$a$"), ("$x_1$", "$")])
def test_names_with_dollars_are_not_formulas_in_plots(tmp_path, names):
    """Names of classes and of subjects, also between two dollar signs."""
    points, index = np.random.default_rng(0).normal(size=(20, 2)), np.tile([0, 1], 10)
    drawn = {
        "confusion": confusion_plot(np.array([[7, 3], [2, 8]]), names),
        "umap_subject": scatter_plot(points, index, names, by_class=False),
    }
    for name, figure in drawn.items():
        svg = save(figure, tmp_path / f"{name}.png")
        assert all(f">{text}</text>" in svg for text in names)
        assert (tmp_path / f"{name}.png").stat().st_size > 1000


def test_best_baseline_is_the_highest_without_the_leakage_check(run):
    """Two subjects per class: the identity baseline has AUROC 1 and is still left out."""
    labels = np.repeat([0, 1], 100)
    result = evaluated(labels, np.clip(labels, 0.2, 0.8), subject_ids(10, 20))
    assert max(result.comparisons, key=lambda b: b.estimates["auroc"].value).baseline.is_leak
    best = best_baseline(result, "auroc")
    assert best == {
        "metric": "AUROC",
        "title": "Majority-class baseline",
        "model": "1.000 (1.000 to 1.000)",
        "baseline": ".500 (.500 to .500)",
        "difference": "+.500 (+.500 to +.500)",
        "mark": "beats",
        "conclusion": "better",
    }
    page = (run / "report.html").read_text(encoding="utf-8")
    header = page[page.index('<header class="top">') : page.index("</header>")]
    assert "Best baseline: " in header
    assert "Difference (model − baseline)" in header
    assert "Best baseline (" in (run / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_stages_become_table_rows_with_units(run):
    epochs = [{"epoch": 0, "seconds": 1.2}, {"epoch": 1, "seconds": 2.0}]
    head = {"stage": "head", "val_score": 0.91, "kept": False, "params": {"lr": 0.004365}, "command": "x"}
    tuned = {"stage": "finetune", "val_score": 0.95, "kept": True, "epochs": epochs}
    card = replace(load_card(run), stages=(head, tuned, {"stage": "threshold", "command": "y"}))
    assert stages(card) == [
        {"name": "head", "score": ".910", "kept": "no", "details": [("params", "lr 0.004365")]},
        {"name": "finetune", "score": ".950", "kept": "yes", "details": [("epochs", "2 (3.2 s)")]},
        {"name": "threshold", "score": "–", "kept": "–", "details": []},
    ]
    assert [count(n, "subject") for n in (0, 1, 1200)] == ["0 subjects", "1 subject", "1,200 subjects"]


def test_axes_of_selection_scores_say_that_they_are_optimistic():
    epochs = [{"train_loss": 1.0, "val_loss": 1.0, "val_score": 0.5}]
    figures = [
        plots_metrics.learning_plot([("head", epochs)], "auroc"),
        plots_analysis.search_plot(np.arange(2), np.array([0.5, 0.6]), "auroc"),
        plots_analysis.trials_plot([("trial 1", [0.5, 0.6])], "auroc"),
    ]
    for figure in figures:
        label = figure.axes[-1].get_ylabel()
        plt.close(figure)
        assert label.replace("\n", " ") == "selection score (optimistic), auroc"
