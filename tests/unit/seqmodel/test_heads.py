"""Heads: which inputs may change the logits, and which may not."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from seqmodel.config import HeadConfig
from seqmodel.heads.recurrent import Z_LIMIT, LstmHead, build_head, masked_mean_std, num_outputs

DIMS = {"embeddings": 10, "geometry": 4}
BATCH, STEPS = 5, 9
EVERY = [
    HeadConfig(
        hidden=6,
        projection=5,
        pooling=pooling,
        kind=kind,
        bidirectional=both,
        centred_copy=more,
        dynamics=more,
    )
    for pooling in ("last", "mean", "max", "attention")
    for kind, both, more in (("lstm", True, False), ("gru", False, True))
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def windows(seed: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Random windows, each with some frames that are not valid."""
    generator = torch.Generator().manual_seed(seed)
    x = {name: torch.randn(BATCH, STEPS, dim, generator=generator) for name, dim in DIMS.items()}
    valid = {name: torch.rand(BATCH, STEPS, generator=generator) > 0.3 for name in DIMS}
    return x, valid


def logits(head: LstmHead, x: dict[str, torch.Tensor], valid: dict[str, torch.Tensor]) -> torch.Tensor:
    head.eval()
    with torch.inference_mode():
        return head(x, valid)


@pytest.mark.parametrize("config", EVERY, ids=lambda c: f"{c.kind}-{c.pooling}")
def test_masked_frames_do_not_move_logits(config: HeadConfig) -> None:
    head = build_head(config, DIMS, 1, seed=0)
    x, valid = windows()
    expected = logits(head, x, valid)
    for filler in (1e4, torch.nan):
        filled = {name: values.masked_fill(~valid[name].unsqueeze(-1), filler) for name, values in x.items()}
        assert torch.equal(logits(head, filled, valid), expected)


@pytest.mark.parametrize("config", EVERY, ids=lambda c: f"{c.kind}-{c.pooling}")
def test_batch_equals_single_windows(config: HeadConfig) -> None:
    head = build_head(config, DIMS, 3, seed=0)
    x, valid = windows()
    alone = [
        logits(head, {k: v[i : i + 1] for k, v in x.items()}, {k: v[i : i + 1] for k, v in valid.items()})
        for i in range(BATCH)
    ]
    torch.testing.assert_close(logits(head, x, valid), torch.cat(alone), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", EVERY, ids=lambda c: f"{c.kind}-{c.pooling}")
def test_window_without_a_face_has_finite_logits_and_gradients(config: HeadConfig) -> None:
    head = build_head(config, DIMS, 1, seed=0)
    x, valid = windows()
    none_valid = {name: torch.zeros_like(mask) for name, mask in valid.items()}
    head(x, none_valid).sum().backward()
    assert torch.isfinite(logits(head, x, none_valid)).all()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in head.parameters())


def test_validity_of_frames_changes_logits() -> None:
    head = build_head(EVERY[2], DIMS, 1, seed=0)
    x, valid = windows()
    assert not torch.equal(
        logits(head, x, valid), logits(head, x, {k: torch.ones_like(v) for k, v in valid.items()})
    )


def test_missing_stream_equals_a_masked_stream() -> None:
    head = build_head(EVERY[0], DIMS, 1, seed=0)
    x, valid = windows()
    lost = {"embeddings": valid["embeddings"], "geometry": torch.zeros_like(valid["geometry"])}
    absent = logits(head, {"embeddings": x["embeddings"]}, {"embeddings": valid["embeddings"]})
    assert torch.equal(logits(head, x, lost), absent)


def test_stream_dropout_never_masks_both_streams() -> None:
    head = build_head(HeadConfig(stream_dropout=1.0, hidden=4, projection=4), DIMS, 1, seed=0).train()
    full = {name: torch.ones(64, STEPS, dtype=torch.bool) for name in DIMS}
    seen, some_step = head._stream_validity(full)
    assert some_step.all()
    hidden = {name: (~mask).all(dim=1) for name, mask in seen.items()}
    assert (hidden["embeddings"] ^ hidden["geometry"]).all()
    assert hidden["embeddings"].any()
    assert hidden["geometry"].any()


def test_statistics_use_only_valid_frames() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(3.0, 2.0, (600, STEPS, 4)).astype(np.float16)
    x[..., 3] = 7.0  # a constant channel
    valid = rng.random((600, STEPS)) > 0.4
    expected = x[valid].astype(np.float64)
    x[~valid] = 999.0
    mean, std = masked_mean_std(x, valid, rows_at_once=100)
    np.testing.assert_allclose(mean, expected.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(std[:3], expected.std(axis=0)[:3], rtol=1e-4)
    assert std[3] == 1.0


def test_units_of_a_stream_do_not_matter() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, STEPS, 10)).astype(np.float32)
    valid = np.ones((40, STEPS), bool)
    mask = {"embeddings": torch.from_numpy(valid[:BATCH])}
    out = []
    for scale, shift in ((1.0, 0.0), (50.0, -7.0)):
        head = build_head(HeadConfig(hidden=4, projection=4), {"embeddings": 10}, 1, seed=0)
        values = x * scale + shift
        head.put_statistics({"embeddings": masked_mean_std(values, valid)})
        out.append(logits(head, {"embeddings": torch.from_numpy(values[:BATCH])}, mask))
    torch.testing.assert_close(out[0], out[1], rtol=1e-3, atol=1e-5)


def test_dynamics_count_rises_and_skip_gaps() -> None:
    from seqmodel.heads.recurrent import _dynamics

    z = torch.tensor([[0.0, 2.0, 0.0, 2.0, 5.0, 0.0]]).reshape(1, 6, 1)
    everything = torch.ones(1, 6, dtype=torch.bool)
    change, rate = _dynamics(z, everything)
    assert change.flatten().tolist() == [0.0, 2.0, -2.0, 2.0, 3.0, -5.0]
    assert rate[0, 0] == pytest.approx(2 / 5)
    gap = torch.tensor([[True, False, True, True, True, True]])
    change, rate = _dynamics(z.masked_fill(~gap.unsqueeze(-1), 0.0), gap)
    assert change.flatten().tolist() == [0.0, 0.0, 0.0, 2.0, 3.0, -5.0]
    assert rate[0, 0] == pytest.approx(1 / 3)


def test_loaded_head_is_the_same_for_any_order_of_streams() -> None:
    head = build_head(EVERY[1], DIMS, 1, seed=3)
    x, valid = windows()
    twin = LstmHead(EVERY[1], dict(reversed(DIMS.items())), 1)
    twin.load_state_dict(head.state_dict())
    assert torch.equal(logits(head, x, valid), logits(twin, x, valid))


def test_ordinal_thresholds_start_in_order_and_share_one_score() -> None:
    head = build_head(HeadConfig(hidden=4, projection=4, shared_thresholds=True), DIMS, 3, seed=0)
    found = logits(head, *windows())
    assert found.shape == (BATCH, 3)
    assert (found.diff(dim=1) < 0).all()
    torch.testing.assert_close(found[:, 0] - found[:, 1], (found[:, 0] - found[:, 1])[0].expand(BATCH))


def test_building_a_head_does_not_change_the_random_state() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = build_head(EVERY[0], DIMS, 1, seed=1).state_dict()
    assert torch.equal(torch.rand(3), expected)
    again = build_head(EVERY[0], DIMS, 1, seed=1).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_outputs_by_task_and_wrong_configs_are_refused() -> None:
    assert [num_outputs(task, 4) for task in ("multiclass", "ordinal")] == [4, 3]
    assert num_outputs("binary", 2) == 1
    with pytest.raises(ValueError, match="at least one input stream"):
        LstmHead(HeadConfig(), {}, 1)
    with pytest.raises(ValueError, match="dropout"):
        LstmHead(HeadConfig(dropout=1.0), {"embeddings": 4}, 1)


def test_geometry_outside_the_limit_equals_geometry_at_the_limit() -> None:
    """Embeddings are not limited: when the encoder is trained, a limited value would have no gradient."""
    head = build_head(HeadConfig(), {"embeddings": 4, "geometry": 4}, 1, seed=0).eval()
    usual = np.full(4, 3.0, np.float32), np.full(4, 0.5, np.float32)
    head.put_statistics({"embeddings": usual, "geometry": usual})
    valid = dict.fromkeys(head.dims, torch.ones(2, 6, dtype=torch.bool))

    def logits(stream: str, value: float) -> torch.Tensor:
        x = {name: torch.full((2, 6, 4), 3.0) for name in head.dims}
        x[stream][:, 2, 1] = value
        return head(x, valid)

    for stream, is_limited in (("geometry", True), ("embeddings", False)):
        at_the_limit = logits(stream, 3.0 - Z_LIMIT * 0.5)
        assert torch.equal(logits(stream, -1e6), at_the_limit) == is_limited
        assert not torch.allclose(logits(stream, 3.0), at_the_limit)


@pytest.mark.parametrize(("centred_copy", "dynamics"), [(True, False), (False, True), (True, True)])
def test_extra_channels_have_the_order_of_the_weights(centred_copy: bool, dynamics: bool) -> None:
    """Values, deviations, differences, rates: saved heads depend on this order. Zero where masked, also after
    the projection."""
    from seqmodel.heads.recurrent import _dynamics

    config = HeadConfig(projection=6, centred_copy=centred_copy, dynamics=dynamics)
    head = build_head(config, {"embeddings": 5}, 1, seed=0).eval()
    whole = build_head(dataclasses.replace(config, projection=0), {"embeddings": 5}, 1, seed=0).eval()
    x, valid = torch.randn(4, 7, 5), torch.rand(4, 7) > 0.3
    valid[0] = False
    keep = valid.unsqueeze(-1)
    z = torch.where(keep, x, 0)  # the statistics of a new head: mean 0, standard deviation 1
    expected = [z]
    if centred_copy:
        mean = z.sum(1) / valid.sum(1, keepdim=True).clamp(min=1)
        expected.append((z - mean.unsqueeze(1)) * keep)
    if dynamics:
        change, rate = _dynamics(z, valid)
        expected += [change, rate.unsqueeze(1) * keep]
    copies = whole._read("embeddings", x, valid)
    torch.testing.assert_close(copies, torch.cat(expected, dim=-1), rtol=1e-6, atol=1e-6)
    projected = torch.relu(head.projections["embeddings"](copies)) * keep
    torch.testing.assert_close(head._read("embeddings", x, valid), projected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("config", EVERY, ids=lambda c: f"{c.kind}-{c.pooling}")
def test_training_and_evaluation_read_the_same_samples(config: HeadConfig) -> None:
    """Same logits without dropout, for float16 values and frames with NaN."""
    head = build_head(dataclasses.replace(config, dropout=0.0), DIMS, 1, seed=0)
    x, valid = windows()
    valid = {name: mask.index_fill(0, torch.tensor([1]), True) for name, mask in valid.items()}
    x = {k: v.masked_fill(~valid[k].unsqueeze(-1), torch.nan).half() for k, v in x.items()}
    torch.testing.assert_close(head.train()(x, valid), head.eval()(x, valid), rtol=1e-5, atol=1e-6)
