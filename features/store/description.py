"""The attributes of a store: their creation, their update and their checksum."""

import dataclasses
import hashlib
import json
from typing import Any

import zarr

from features.cli import UserError
from features.recipe import Recipe, from_json, require_equal, to_json
from features.store.data_statement import DataStatement
from features.store.location import StoreLocation, read_bytes
from features.store.schema import (
    NUMBER_COLUMNS,
    ROW_ARRAYS,
    TEXT_COLUMNS,
    user_arrays,
)

SCHEMA = "brainbuddy-features/2"
FRAME_COLUMNS = ("time_s", "x0", "y0", "x1", "y1", "score")
LAYOUT_SUM = "layout_sum"


def create(
    location: StoreLocation,
    recipe: Recipe,
    *,
    numerics: dict[str, Any],
    num_frames: int,
    versions: dict[str, str] | None,
    dtype: str = "float16",
    rows_per_chunk: int = 1,
    label_names: dict[str, list[str]] | None = None,
) -> zarr.Group:
    """Create a store without rows. dtype: of the embeddings. label_names: by column, to fix their order."""
    attributes = {
        "schema": SCHEMA,
        "recipe": to_json(recipe),
        "numerics": numerics,
        "other_numerics": [],
        "versions": versions or {},
        "num_clips": 0,
        "num_frames": num_frames,
        "embedding_dtype": dtype,
        "rows_per_chunk": rows_per_chunk,
        "frame_columns": list(FRAME_COLUMNS),
        "label_names": label_names or {},
        "slice_columns": [],
        "test_evaluations": [],
        "encoder_subsets": {},
    }
    attributes[LAYOUT_SUM] = layout_sum(location, attributes)
    return zarr.create_group(location.zarr_store(read_only=False), attributes=attributes)


def reconcile(
    group: zarr.Group,
    location: StoreLocation,
    recipe: Recipe,
    numerics: dict[str, Any],
    data_statement: DataStatement | None,
) -> Recipe:
    """Check that the recipe of a plan matches the existing store; record an added geometry, new numerics and
    another data statement that is not empty.

    Returns the store's recipe. Raises UserError naming every field of the recipe that differs.
    """
    stored = recipe_of(group, location)
    both_have_geometry = stored.geometry is not None and recipe.geometry is not None
    parts: Any = ("pixels", "encoder", "geometry") if both_have_geometry else ("pixels", "encoder")
    require_equal(stored, recipe, parts, where=f"store {location.text} and this extraction")
    updates: dict[str, Any] = {}
    if stored.geometry is None and recipe.geometry is not None:
        stored = dataclasses.replace(stored, geometry=recipe.geometry)
        updates["recipe"] = to_json(stored)
    known = [group.attrs["numerics"], *group.attrs["other_numerics"]]  # type: ignore[misc]
    if numerics not in known:
        updates["other_numerics"] = [*known[1:], numerics]
    statement = dataclasses.asdict(data_statement or DataStatement())
    if data_statement not in (None, DataStatement()) and statement != group.attrs.get("data_statement"):
        updates["data_statement"] = statement
    if updates:
        commit(group, location, updates)
    return stored


def recipe_of(group: zarr.Group, location: StoreLocation) -> Recipe:
    """The recipe of a store.

    Raises UserError when the group is not a store of this schema.
    """
    if group.attrs.get("schema") != SCHEMA:
        raise UserError(
            f"{location.text} is not a feature store of this version: its schema is "
            f"{group.attrs.get('schema')!r}, expected {SCHEMA!r}"
        )
    return from_json(group.attrs["recipe"])  # type: ignore[arg-type]


def commit(group: zarr.Group, location: StoreLocation, updates: dict[str, Any]) -> None:
    """Write attributes together with the checksum over all attributes and array metadata.

    Raises UserError when the planner lock of `location` is lost.
    """
    location.require_lock()
    group.update_attributes(updates | {LAYOUT_SUM: layout_sum(location, dict(group.attrs) | updates)})


def layout_sum(location: StoreLocation, attributes: dict[str, Any]) -> str:
    """Checksum of what zarr itself has no checksum of: the attributes and each array's `zarr.json`."""
    summed = {key: value for key, value in attributes.items() if key != LAYOUT_SUM}
    digest = hashlib.sha256(json.dumps(summed, sort_keys=True).encode())
    for name in (*TEXT_COLUMNS, *NUMBER_COLUMNS, *ROW_ARRAYS, "labels", "slices", *user_arrays(attributes)):
        digest.update(read_bytes(location, f"{name}/zarr.json") or b"absent")
    return digest.hexdigest()[:16]
