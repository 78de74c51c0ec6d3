"""The data statement: file -> store, templates, and wrong files."""

import dataclasses
import json
import tomllib
from pathlib import Path

import pytest

from features.maintenance.describe import describe
from features.store.data_statement import (
    FILE,
    NOT_STATED,
    TEMPLATE,
    TITLES,
    DataStatement,
    read_statement,
    statement_rows,
)
from features.store.store import FeatureStore, plan
from tests.support.trained_run import RECIPE, make_store

FULL = DataStatement(
    name="집중 “2026”",
    version="1.0",
    licence="CC BY 4.0",
    synthetic=False,
    labelled='engagement, "0 to 3" \\ clip',
    raters="two teachers",
    num_raters=2,
    agreement="kappa .61",
    recruitment="volunteers",
    consent="IRB 2026-17",
    camera="webcam",
    language="Korean",
)


def to_toml(statement: DataStatement) -> str:
    """The stated fields; strings and booleans of JSON are also those of TOML."""
    stated = {name: value for name, value in vars(statement).items() if value not in (None, "")}
    return "\n".join(f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in stated.items())


def plan_again(path: Path, statement: DataStatement | None) -> DataStatement:
    """The statement of the store after another extraction with this one."""
    plan(path, [], RECIPE, numerics={"backend": "none"}, listing_complete=False, data_statement=statement)
    return FeatureStore.open(path).data_statement


@pytest.mark.parametrize("statement", [FULL, DataStatement(), DataStatement(synthetic=True, version="x")])
def test_statement_survives_the_file(tmp_path: Path, statement: DataStatement) -> None:
    (tmp_path / FILE).write_text(to_toml(statement), encoding="utf-8")
    assert read_statement(tmp_path) == statement
    (tmp_path / FILE).write_text(to_toml(statement), encoding="utf-8-sig")  # as Windows' editor saves it
    assert read_statement(tmp_path) == statement


def test_folder_without_a_file_states_nothing(tmp_path: Path) -> None:
    assert read_statement(tmp_path) == DataStatement()
    assert {text for _, text in statement_rows(DataStatement())} == {NOT_STATED}
    assert len(statement_rows(DataStatement())) == len(dataclasses.fields(DataStatement)) == len(TITLES)
    assert NOT_STATED not in {text for _, text in statement_rows(FULL)}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('licenze = "MIT"', "unknown field licenze; the fields are name, version"),
        ("version = 1.0", 'version must be a text in quotes, such as "1.0", got 1.0'),
        ('synthetic = "yes"', "synthetic must be true or false, got 'yes'"),
        ("num_raters = true", "num_raters must be a whole number, got True"),
        ('name = "x', "Unterminated string"),
        ('name = "\udcb3"', "is not UTF-8"),
    ],
)
def test_wrong_file_is_one_clear_line(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"dataset\.toml") as caught:
        read_statement(tmp_path)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_template_has_every_field_and_states_nothing() -> None:
    assert tomllib.loads(TEMPLATE) == {}
    assert tomllib.loads(TEMPLATE[: len(TEMPLATE) // 2]) == {}, "read while it is being written"
    lines = [line.removeprefix("# ") for line in TEMPLATE.splitlines()[1:]]
    fields = tomllib.loads("\n".join(lines))  # each line is valid without its #
    assert fields.keys() == TITLES.keys()
    DataStatement(**fields)


def test_store_has_the_last_statement_that_is_not_empty(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", num_subjects=2)
    assert store.data_statement == DataStatement()
    fingerprint = store.fingerprint()
    assert plan_again(tmp_path / "s.zarr", FULL) == FULL
    assert plan_again(tmp_path / "s.zarr", DataStatement()) == FULL
    assert plan_again(tmp_path / "s.zarr", None) == FULL
    changed = dataclasses.replace(FULL, version="1.1")
    assert plan_again(tmp_path / "s.zarr", changed) == changed
    store = FeatureStore.open(tmp_path / "s.zarr")
    assert describe(store)["data_statement"]["version"] == "1.1"
    assert store.fingerprint() == fingerprint, "a statement changes no clip"


def test_notice_of_synthetic_data_says_how_they_were_made() -> None:
    made = DataStatement(
        synthetic=True, recruitment="made from one portrait", raters="labels by construction"
    )
    assert made.synthetic_notice == "SYNTHETIC DATA: made from one portrait, labels by construction"
    assert DataStatement(synthetic=True).synthetic_notice == "SYNTHETIC DATA: not stated"
    assert dataclasses.replace(made, synthetic=False).synthetic_notice == ""
    assert DataStatement(recruitment="volunteers").synthetic_notice == ""
