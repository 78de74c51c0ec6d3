"""Style of the plots, and saving a plot as PNG file and as SVG text for a page.

Plots use a few fixed colours. The PNG keeps them; in the SVG each becomes a CSS variable, so one plot works
in light and dark mode and in print. Matplotlib is imported where it is used, always without a display.
"""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, SOFT, FAINT, PAPER = "#1c2430", "#5d6877", "#d8dde4", "#fefefe"
MODEL, OTHER, LEAK = "#2563c9", "#8a94a3", "#c2662d"
CLASSES = ("#c2662e", "#2563ca", "#2f8f6b", "#8a4fb5", "#b8902c", "#c2477f", "#3c8fa8")
"""One colour per class, distinct for most colour-blind readers; further classes repeat them."""
CSS_NAMES = {
    INK: "--ink",
    SOFT: "--soft",
    FAINT: "--faint",
    PAPER: "--paper",
    MODEL: "--model",
    OTHER: "--other",
    LEAK: "--leak",
} | {colour: f"--class-{k}" for k, colour in enumerate(CLASSES)}

# Fonts with Hangul, by their names on Linux, Windows and macOS.
CJK_FONTS = (
    "Noto Sans CJK KR",
    "Noto Sans KR",
    "Malgun Gothic",
    "NanumGothic",
    "Apple SD Gothic Neo",
    "Noto Sans CJK JP",
)
CJK_FONT_FILES = ("NotoSansCJK-Regular", "NotoSansKR", "malgun", "NanumGothic", "AppleSDGothicNeo")
"""Prefixes of the font file names."""
PNG_DPI = 160


@contextmanager
def style() -> Iterator[None]:
    """Apply the Matplotlib settings of the plots, and restore the old ones afterwards."""
    import matplotlib

    matplotlib.use("Agg")
    settings: Any = {
        "font.family": ["DejaVu Sans", *hangul_fonts()[:1]],
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": SOFT,
        "axes.labelcolor": SOFT,
        "axes.facecolor": "none",
        "axes.grid": True,
        "grid.color": FAINT,
        "grid.linewidth": 0.7,
        "axes.axisbelow": True,
        "xtick.color": SOFT,
        "ytick.color": SOFT,
        "text.color": INK,
        "text.parse_math": False,  # names of classes and subjects are not formulas
        "axes.titlecolor": INK,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "lines.linewidth": 2.0,
        "figure.facecolor": PAPER,
        "figure.constrained_layout.use": True,
        "svg.fonttype": "none",
        "svg.hashsalt": "brainbuddy",
    }
    with matplotlib.rc_context(settings):
        yield


@contextmanager
def drawing(
    width: float, height: float, panel_heights: Sequence[float] = (1.0,)
) -> Iterator[tuple["Figure", Any]]:
    """A new figure of width x height inches in this style, and its axes.

    Several panels lie below each other and share the x axis; then the axes are an array.
    """
    with style():
        import matplotlib.pyplot as plt

        yield plt.subplots(
            len(panel_heights), figsize=(width, height), height_ratios=panel_heights, sharex=True
        )


@cache
def hangul_fonts() -> list[str]:
    """Names of the installed fonts with Hangul, the preferred one first.

    Matplotlib caches its list of fonts: a font installed later is found by its file name and added.
    """
    from matplotlib import font_manager

    known = font_manager.fontManager.ttflist
    if not any(font.name in CJK_FONTS and Path(font.fname).is_file() for font in known):
        for file in font_manager.findSystemFonts():
            if Path(file).stem.startswith(CJK_FONT_FILES):
                font_manager.fontManager.addfont(file)
    names = {font.name for font in known if Path(font.fname).is_file()}
    return [name for name in CJK_FONTS if name in names]


def save(figure: "Figure", png: Path) -> str:
    """Write the figure to `png` and return it as SVG text whose colours are CSS variables of the page."""
    import matplotlib.pyplot as plt

    png.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.StringIO()
    with style():
        # One layout for both files.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        figure.savefig(png, dpi=PNG_DPI)
        figure.savefig(buffer, format="svg", transparent=True)
    plt.close(figure)
    return themed(buffer.getvalue(), png.stem)


def themed(svg: str, name: str) -> str:
    """SVG for a page: without header, ids made unique by `name`, colours as CSS variables."""
    svg = svg[svg.index("<svg") :]
    # The style element would apply to the whole page; report.css has the same rules.
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'id="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(xlink:href|href)="#([^"]+)"', rf'\1="#{name}-\2"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    for colour, variable in CSS_NAMES.items():
        svg = svg.replace(colour, f"var({variable})")
    # The page sets the size from the view box.
    return re.sub(
        r'(<svg[^>]*?) width="[^"]*"',
        r"\1",
        re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1),
        count=1,
    )


def class_colour(k: int) -> str:
    """Colour of class k."""
    return CLASSES[k % len(CLASSES)]
