"""Names and texts use the field's words: no identifier and no phrase of the old private vocabulary is left.

The first list holds class, function and attribute names that were replaced (`EvaluationResult` for
`Judgement`, for example). The second list holds phrases and words that were replaced in messages, help
texts, reports, docstrings and docs. docs/log.md and CHANGELOG.md are records and are not checked.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("features", "seqmodel", "extract", "tune", "live")

OLD_IDENTIFIERS = frozenset(
    """
    Asked Yardstick Judgement Beside Paired Draws Story Fall Refitted FoldAnswer Ways open_ways
    Population Question put_question Team Outcome Goal Stage CutSource Place Lost StoreLost Setup Kernels
    Tally Cut cut_windows Reading Seen Canon Puppet Spell Bench Choice seed_point SEED_ROLE Wishes Standing
    Moment Newest PacedFile Durably run_door asked_of growing_logits write_texts come_back doubt_of_folds
    own_share lacking_parts forecast subtract_rest SIDES map_meanwhile take_best
    after_death _bury
    Compared Evidence home_of some_places num_people seen_fingerprint is_home facts_of new_beside sweep_beside
    DEFAULT_CUT NOTHING_LEARNED REFERENCE DRAWS count_opening record_test_opening test_openings openings
    ledger calibrators calibrators_of CALIBRATORS drop_decisions ours theirs words recognise print_outcome
    per_subject_confusion TROUGH COUNTED_S APART_LOGITS GOODBYE_S WORTH_SHOWING facts olds news young worn
    nowhere told asked vanished learn
    """.split()
)

OLD_PHRASES = (
    "which question is put to the labels",
    "heads to try",
    "people keep their side",
    "a run on a split, with baselines",
    "opening test is counted",
    "ledger counts",
    "how good, and compared with what",
    "does it beat them",
    "too few people to tell",
    "always saying",
    "commonest",
    "identity (leak)",
    "knows only who it is",
    "blind to order",
    "can its probabilities be believed",
    "is said from",
    "saying nothing when unsure",
    "for whom it works",
    "gathered one clip at a time",
    "most eager",
    "in remainders shorter",
    "once these are mended",
    "decides otherwise now",
    "making the run ready for live",
    "checked on noise",
    "what was done is saved",
    "costs nothing",
    "asked for",
    "nothing to learn from",
    "rest of the face",
    "theirs=ours",
    "left-out subjects",
    "left-out clips",
    "other numerics",
    "sign of life",
    "signs of life",
    "training majority",
    "take all night",
    "places may surprise",
    "bug of ours",
    "this one is ours",
    "kept beside",
    # Single words.
    "yardstick",
    "yardsticks",
    "judgement",
    "judgements",
    "judge",
    "judges",
    "judged",
    "judging",
    "door",
    "doors",
    "vanished",
    "everybody",
    "somebody",
    "whoever",
    "openings",
    "mend",
    "mended",
    "story",
    "rivals",
)
OLD_PHRASE = re.compile(rf"\b(?:{'|'.join(map(re.escape, OLD_PHRASES))})(?!\w)", re.IGNORECASE)


def modules() -> list[Path]:
    """Every Python file of the five packages."""
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def text_files() -> list[Path]:
    """Templates and pages of the packages, the README, and the docs without the dated log."""
    found = [ROOT / "README.md"]
    for package in PACKAGES:
        found += [path for path in (ROOT / package).rglob("*") if path.suffix in (".j2", ".html")]
    found += [path for path in (ROOT / "docs").glob("*.md") if path.name != "log.md"]
    return sorted(found)


def identifiers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of every name, attribute, definition, argument, keyword and import in a module."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Name):
            yield line, node.id
        elif isinstance(node, ast.Attribute):
            yield line, node.attr
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield line, node.name
        elif isinstance(node, ast.arg) or (isinstance(node, ast.keyword) and node.arg):
            yield line, str(node.arg)
        elif isinstance(node, ast.alias):
            yield from ((line, name) for name in (*node.name.split("."), node.asname) if name)


def strings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, text) of every string constant, docstrings and the fixed parts of f-strings included.

    Keys of dictionaries and subscripts are left out: they are names in file formats, not texts.
    """
    keys: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            keys |= {key for key in node.keys if key}
        elif isinstance(node, ast.Subscript):
            keys.add(node.slice)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in keys:
            yield node.lineno, node.value


def old_phrases(text: str) -> list[str]:
    """The old phrases in a text, in lower case; a line break inside a phrase counts as a space."""
    return [found.lower() for found in OLD_PHRASE.findall(re.sub(r"\s+", " ", text))]


def test_no_old_identifier_is_left_in_the_packages() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in modules()
        for line, name in identifiers(ast.parse(path.read_text(encoding="utf-8")))
        if name in OLD_IDENTIFIERS
    ]
    assert not found, "\n".join(found)


def test_no_old_phrase_is_left_in_a_string_of_the_packages() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {phrase}"
        for path in modules()
        for line, text in strings(ast.parse(path.read_text(encoding="utf-8")))
        for phrase in old_phrases(text)
    ]
    assert not found, "\n".join(found)


def test_no_old_phrase_is_left_in_templates_and_docs() -> None:
    assert {ROOT / "README.md", ROOT / "docs" / "live.md"} <= set(text_files())
    found = [
        f"{path.relative_to(ROOT)}: {phrase}"
        for path in text_files()
        for phrase in old_phrases(path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("class Judgement: pass", "Judgement"),
        ("async def run_door(): pass", "run_door"),
        ("x = module.Yardstick()", "Yardstick"),
        ("def f(forecast): pass", "forecast"),
        ("f(forecast=1)", "forecast"),
        ("from a import Draws as D", "Draws"),
        ("import a as Team", "Team"),
    ],
)
def test_old_identifier_is_found_at_every_position(code: str, name: str) -> None:
    assert name in OLD_IDENTIFIERS & {found for _, found in identifiers(ast.parse(code))}


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("Judge a run on a split", ["judge"]),
        ("clips that\n    have vanished", ["vanished"]),
        ("Once these\nare mended", ["once these are mended"]),
        ("Identity (leak): knows only who it is", ["identity (leak)", "knows only who it is"]),
        ("indoor scenes, prejudged, a recommended value", []),
    ],
)
def test_an_old_phrase_is_found_as_whole_words(text: str, phrases: list[str]) -> None:
    assert old_phrases(text) == phrases


@pytest.mark.parametrize(
    ("code", "phrases"),
    [
        ("f'{n} clips have vanished since {when}'", ["vanished"]),
        ("def f():\n    'Judges a run.'", ["judges"]),
        ("print('clips ' 'asked ' 'for')", ["asked for"]),
        ("{'vanished': n, 'clips': f'{n} vanished'}", ["vanished"]),
        ("summary['vanished']", []),
    ],
)
def test_texts_of_code_are_checked_but_not_keys(code: str, phrases: list[str]) -> None:
    texts = [text for _, text in strings(ast.parse(code))]
    assert [phrase for text in texts for phrase in old_phrases(text)] == phrases
