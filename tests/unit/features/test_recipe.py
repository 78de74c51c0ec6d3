"""Recipes: identities, fingerprints, and errors for different recipes."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.recipe import (
    EncoderId,
    GeometryId,
    Pixels,
    Recipe,
    differences,
    fingerprint,
    from_json,
    require_equal,
    to_json,
)

RECIPE = Recipe(
    Pixels(("a" * 64,)),
    EncoderId("mobilenet_v3_large", "IMAGENET1K_V2", "b" * 64, 960),
    GeometryId("c" * 64, ("eyeBlinkLeft", "yaw")),
)


@given(
    margin=st.floats(0, 2),
    crop_px=st.integers(32, 512),
    fps=st.floats(0.1, 60),
    window_s=st.floats(0.5, 100),
    name=st.text(max_size=20),
    has_geometry=st.booleans(),
)
def test_recipe_from_json_is_equal(
    margin: float, crop_px: int, fps: float, window_s: float, name: str, has_geometry: bool
) -> None:
    """to_json, JSON text and from_json give the same recipe."""
    recipe = Recipe(
        Pixels(("d" * 64, "e" * 64), margin=margin, crop_px=crop_px, fps=fps, window_s=window_s),
        EncoderId(name, "w", "f" * 64, 1280),
        GeometryId("g", ("한글",)) if has_geometry else None,
    )
    back = from_json(json.loads(json.dumps(to_json(recipe))))
    assert back == recipe
    assert fingerprint(back) == fingerprint(recipe)


def test_external_recipe_has_no_pixels() -> None:
    """The pixels of imported features are None before and after JSON."""
    external = Recipe(None, EncoderId("external:openface:35", "", "", 35))
    assert from_json(to_json(external)) == external


def test_require_equal_names_every_field_that_differs() -> None:
    """The error names the fields that differ, with both values."""
    other = dataclasses.replace(
        RECIPE,
        pixels=dataclasses.replace(RECIPE.pixels, margin=0.5, fps=5.0),
        encoder=dataclasses.replace(RECIPE.encoder, weights_sha256="9" * 64),
    )
    with pytest.raises(ValueError, match=r"pixels\.margin: 0\.25 vs 0\.5.*encoder\.weights_sha256") as caught:
        require_equal(RECIPE, other, where="run a and store b")
    assert "pixels.fps" in str(caught.value)
    assert "run a and store b" in str(caught.value)


def test_only_the_parts_in_use_are_compared() -> None:
    """For crops only the pixels must be equal."""
    other = dataclasses.replace(
        RECIPE, encoder=EncoderId("efficientnet_lite0", "x", "1" * 64, 1280), geometry=None
    )
    require_equal(RECIPE, other, ("pixels",))
    with pytest.raises(ValueError, match="geometry: set vs none"):
        require_equal(RECIPE, other)


def test_name_of_the_weights_is_not_compared() -> None:
    """Equal hashes mean equal weights, for any file name."""
    renamed = dataclasses.replace(RECIPE, encoder=dataclasses.replace(RECIPE.encoder, weights="my_file.pth"))
    assert differences(RECIPE, renamed) == []
    require_equal(RECIPE, renamed)


def test_bad_pixels_and_foreign_json_are_refused() -> None:
    """Impossible values and other schemas raise ValueError."""
    with pytest.raises(ValueError, match="above 0"):
        Pixels(("a",), fps=0)
    with pytest.raises(ValueError, match="not a recipe"):
        from_json({"pixels": {"colour": "blue"}, "encoder": {}})
    lacking = to_json(RECIPE)
    del lacking["pixels"]["crop_rule"]
    with pytest.raises(ValueError, match="not a recipe of this version: 'crop_rule'"):
        from_json(lacking)
