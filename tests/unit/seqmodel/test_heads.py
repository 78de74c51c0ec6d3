"""Heads, their input and the ensemble: what may change the logits, and what may not."""

import dataclasses

import numpy as np
import pytest
import torch

from seqmodel.config import HeadConfig, MemberConfig
from seqmodel.heads.ensemble import Ensemble, Head, build_ensemble, to_probabilities
from seqmodel.heads.inputs import MAX_FRAMES, Z_LIMIT, StreamInput, fit_input, masked_mean_std
from seqmodel.heads.recurrent import RecurrentHead, build_head, num_outputs
from seqmodel.heads.window_statistics import statistics_of

pytestmark = pytest.mark.usefixtures("one_thread")
DIMS = {"embeddings": 10, "geometry": 4}
STREAM, DIM = "embeddings", 10
BATCH, STEPS = 5, 9
EVERY = [
    HeadConfig(
        hidden=6,
        components=components,
        pooling=pooling,
        kind=kind,  # type: ignore[arg-type]
        bidirectional=both,
        statistics=statistics,
    )
    for pooling in ("mean", "stats", "attention")
    for kind, both, components, statistics in (("lstm", True, 0, False), ("gru", False, 5, True))
]


def name_of(config: HeadConfig) -> str:
    return f"{config.kind}-{config.pooling}"


def windows(seed: int = 0, stream: str = STREAM) -> tuple[torch.Tensor, torch.Tensor]:
    """Random windows of a stream, each with some frames that are not valid."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, STEPS, DIMS[stream], generator=generator)
    return x, torch.rand(BATCH, STEPS, generator=generator) > 0.3


def both_streams(seed: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Random windows of both streams."""
    found = {name: windows(seed + number, name) for number, name in enumerate(DIMS)}
    return {name: x for name, (x, _) in found.items()}, {name: valid for name, (_, valid) in found.items()}


def head_of(config: HeadConfig, outputs: int = 1, seed: int = 0, stream: str = STREAM) -> RecurrentHead:
    """A head whose input is fitted on other windows."""
    head = build_head(config, stream, DIMS[stream], outputs, seed=seed)
    x, valid = (array.numpy() for array in windows(99, stream))
    head.input.put(fit_input(stream, x, valid, config.components))
    return head


def logits(head: Head, x: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    head.eval()
    with torch.inference_mode():
        return head(x, valid)


@pytest.mark.parametrize("config", EVERY, ids=name_of)
def test_masked_frames_do_not_move_logits(config: HeadConfig) -> None:
    head = head_of(config)
    x, valid = windows()
    expected = logits(head, x, valid)
    for filler in (1e4, torch.nan):
        assert torch.equal(logits(head, x.masked_fill(~valid.unsqueeze(-1), filler), valid), expected)


@pytest.mark.parametrize("config", EVERY, ids=name_of)
def test_batch_equals_single_windows(config: HeadConfig) -> None:
    head = head_of(config, 3)
    x, valid = windows()
    alone = [logits(head, x[i : i + 1], valid[i : i + 1]) for i in range(BATCH)]
    torch.testing.assert_close(logits(head, x, valid), torch.cat(alone), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", EVERY, ids=name_of)
def test_window_without_a_face_has_finite_logits_and_gradients(config: HeadConfig) -> None:
    head = head_of(config)
    x, valid = windows()
    x.requires_grad_()
    some_without = valid & (torch.arange(BATCH) > 1).unsqueeze(1)
    for mask in (torch.zeros_like(valid), some_without):
        head.zero_grad()
        head(x, mask).sum().backward()
        assert torch.isfinite(logits(head, x.detach(), mask)).all()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in (*head.parameters(), x))


def test_validity_of_frames_changes_logits() -> None:
    x, valid = windows()
    for config in EVERY:
        head = head_of(config)
        assert not torch.equal(logits(head, x, valid), logits(head, x, torch.ones_like(valid)))


@pytest.mark.parametrize("config", EVERY, ids=name_of)
def test_training_and_evaluation_read_the_same_samples(config: HeadConfig) -> None:
    """Same logits without dropout, for float16 values and frames with NaN, and from the input as `fit` reads
    it."""
    head = head_of(dataclasses.replace(config, dropout=0.0))
    x, valid = windows()
    valid[1] = True
    x = x.masked_fill(~valid.unsqueeze(-1), torch.nan).half()
    expected = head.eval()(x, valid)
    torch.testing.assert_close(head.train()(x, valid), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(head.read(head.input(x, valid), valid), expected, rtol=1e-5, atol=1e-6)


def test_window_statistics_beside_the_states_are_standardised_and_limited() -> None:
    """By mean and standard deviation over the windows that the head was fitted on."""
    head = head_of(HeadConfig(hidden=4, pooling="mean", dropout=0.0, components=0)).eval()
    generator = torch.Generator().manual_seed(3)
    z = 7 + 3 * torch.randn(300, STEPS, DIM, generator=generator)
    z[5] *= 20
    valid = torch.rand(300, STEPS, generator=generator) > 0.3
    head.fit_statistics(z.numpy(), valid.numpy())
    read: list[torch.Tensor] = []
    head.output.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    with torch.inference_mode():
        head.read(z, valid)
    found = read[0][:, -len(head.statistics_mean) :].numpy()
    raw = statistics_of(z.numpy(), valid.numpy())
    expected = (raw - raw.mean(axis=0)) / np.maximum(raw.std(axis=0), 1e-3)
    np.testing.assert_allclose(found, expected.clip(-Z_LIMIT, Z_LIMIT), atol=2e-3)
    assert np.abs(expected).max() > Z_LIMIT


def test_ordinal_thresholds_start_in_order_and_share_one_score() -> None:
    head = build_head(HeadConfig(hidden=4, shared_thresholds=True), STREAM, DIM, 3, seed=0)
    found = logits(head, *windows())
    assert found.shape == (BATCH, 3)
    assert (found.diff(dim=1) < 0).all()
    torch.testing.assert_close(found[:, 0] - found[:, 1], (found[:, 0] - found[:, 1])[0].expand(BATCH))


def test_building_a_head_does_not_change_the_random_state() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = build_head(EVERY[0], STREAM, DIM, 1, seed=1).state_dict()
    assert torch.equal(torch.rand(3), expected)
    again = build_head(EVERY[0], STREAM, DIM, 1, seed=1).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_outputs_by_task_and_wrong_configs_are_refused() -> None:
    assert [num_outputs(task, 4) for task in ("multiclass", "ordinal")] == [4, 3]
    assert num_outputs("binary", 2) == 1
    with pytest.raises(ValueError, match="dropout"):
        RecurrentHead(HeadConfig(dropout=1.0), STREAM, 4, 1)


# Input


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


@pytest.mark.parametrize("components", [0, 5])
def test_units_of_a_stream_do_not_matter(components: int) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, STEPS, DIM)).astype(np.float32)
    x += 2 * rng.normal(size=(40, STEPS, 1)).astype(np.float32) * np.arange(DIM, dtype=np.float32)
    valid = np.ones((40, STEPS), bool)
    out = []
    for scale, shift in ((1.0, 0.0), (50.0, -7.0)):
        head = build_head(HeadConfig(hidden=4, components=components), STREAM, DIM, 1, seed=0)
        values = x * np.float32(scale) + np.float32(shift)
        head.input.put(fit_input(STREAM, values, valid, components))
        out.append(logits(head, torch.from_numpy(values[:BATCH]), torch.from_numpy(valid[:BATCH])))
    torch.testing.assert_close(out[0], out[1], rtol=1e-3, atol=1e-3)


def correlated(num_clips: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Windows of ten features of different size around a few directions, with some frames not valid."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(DIM, DIM)) * 3.0 ** -np.arange(DIM)[:, None]
    x = rng.normal(size=(num_clips, STEPS, DIM)) @ directions + 4 * rng.normal(size=DIM)
    return (x * 10.0 ** rng.integers(-2, 3, DIM)).astype(np.float32), rng.random((num_clips, STEPS)) > 0.3


def test_input_reads_the_principal_components_of_standardised_features() -> None:
    """Those of scikit-learn up to the sign of each and one common scale: the first has deviation 1."""
    from sklearn.decomposition import PCA

    x, valid = correlated()
    head_input = StreamInput(STREAM, DIM, 4)
    head_input.put(fit_input(STREAM, x, valid, 4))
    found = head_input(torch.from_numpy(x), torch.from_numpy(valid)).numpy()
    assert found.shape == (60, STEPS, 4)
    assert (found[~valid] == 0).all()
    frames = x[valid].astype(np.float64)
    expected = PCA(4, svd_solver="full").fit_transform((frames - frames.mean(axis=0)) / frames.std(axis=0))
    expected /= expected[:, 0].std()
    signs = np.sign((found[valid] * expected).sum(axis=0))
    np.testing.assert_allclose(found[valid] * signs, expected, atol=2e-3)
    largest = np.abs(head_input.basis.numpy()).argmax(axis=1)
    assert (head_input.basis.numpy()[np.arange(4), largest] > 0).all(), "the same sign on every machine"


@pytest.mark.parametrize("stream", list(DIMS))
def test_frames_that_are_not_valid_do_not_change_the_input(stream: str) -> None:
    x, valid = correlated()
    for filler in (1e4, np.nan):
        filled = np.where(valid[..., None], x, np.float32(filler))
        first, second = (fit_input(stream, values, valid, 4) for values in (x, filled))
        for field in dataclasses.fields(first):
            np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name))


def test_first_components_are_those_of_a_wider_input() -> None:
    """A fold computes the widest input once, for heads of every width."""
    x, valid = correlated()
    wide, narrow = (fit_input(STREAM, x, valid, number) for number in (8, 3))
    head_input = StreamInput(STREAM, DIM, 3)
    head_input.put(wide)
    np.testing.assert_array_equal(head_input.basis.numpy(), narrow.basis)
    for number in (0, DIM, DIM + 5):
        assert StreamInput(STREAM, DIM, number).width == DIM
        assert fit_input(STREAM, x, valid, number).basis.shape == (0, DIM)


def test_axes_without_frames_are_zero() -> None:
    """Where the training frames do not vary, other frames would only add noise."""
    x, _ = correlated()
    valid = np.zeros(x.shape[:2], bool)
    assert not fit_input(STREAM, x, valid, 4).basis.any()
    valid[0, :3] = True  # three frames are on one plane
    basis = fit_input(STREAM, x, valid, 4).basis
    assert basis.any(axis=1).tolist() == [True, True, False, False]


def test_principal_components_of_many_frames_are_those_of_evenly_spaced_clips() -> None:
    x, valid = correlated(2 * MAX_FRAMES // STEPS)
    few = fit_input(STREAM, x[::2], valid[::2], 3).basis
    every = fit_input(STREAM, x, valid, 3).basis
    assert not np.array_equal(few, every)
    cosines = (few * every).sum(axis=1) / np.linalg.norm(few, axis=1) / np.linalg.norm(every, axis=1)
    assert np.abs(cosines).min() > 0.99


def test_noise_unit_is_one_deviation_of_a_feature() -> None:
    x, valid = correlated()
    for components in (0, 4):
        head_input = StreamInput(STREAM, DIM, components)
        head_input.put(fit_input(STREAM, x, valid, components))
        noise = head_input.std * torch.randn(4000, 5, DIM, generator=torch.Generator().manual_seed(0))
        every = torch.ones(4000, 5, dtype=torch.bool)
        moved = head_input(head_input.mean + noise, every) - head_input(
            head_input.mean.expand(4000, 5, DIM), every
        )
        assert moved.std() == pytest.approx(head_input.noise_unit(), rel=0.02)


@pytest.mark.parametrize("components", [0, 3])
def test_geometry_outside_the_limit_equals_geometry_at_the_limit(components: int) -> None:
    """Embeddings are not limited: when the encoder is trained, a limited value would have no gradient."""
    valid = torch.ones(2, 6, dtype=torch.bool)
    for stream, is_limited in (("geometry", True), ("embeddings", False)):
        head = build_head(HeadConfig(components=components), stream, 4, 1, seed=0).eval()
        rng = np.random.default_rng(0)
        x = rng.normal(size=(40, 6, 4)).astype(np.float32)
        head.input.put(fit_input(stream, x, np.ones((40, 6), bool), components))
        mean, std = head.input.mean, head.input.std

        def with_value(z: float, head: RecurrentHead = head) -> torch.Tensor:
            values = head.input.mean.expand(2, 6, 4).clone()
            values[:, 2, 1] = mean[1] + z * std[1]  # noqa: B023
            return logits(head, values, valid)

        at_the_limit = with_value(-Z_LIMIT * 1.00001)
        assert torch.equal(with_value(-1e6), at_the_limit) == is_limited
        assert not torch.allclose(with_value(0.0), at_the_limit)


# Ensemble


def ensemble_of(num_folds: int = 2, task: str = "binary", outputs: int = 1) -> Ensemble:
    """Two members on both streams, with heads of different weights."""
    configs = EVERY[0], dataclasses.replace(EVERY[3], components=3)
    members = [
        [head_of(config, outputs, seed=10 * number + fold, stream=stream) for fold in range(num_folds)]
        for number, (config, stream) in enumerate(zip(configs, DIMS, strict=True))
    ]
    return Ensemble(members, task).eval()  # type: ignore[arg-type]


def predicted(model: Ensemble, x: dict[str, torch.Tensor], valid: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits of an ensemble."""
    with torch.inference_mode():
        return model(x, valid)


@pytest.mark.parametrize(("task", "outputs"), [("binary", 1), ("multiclass", 3), ("ordinal", 2)])
def test_ensemble_is_the_mean_probability_of_all_heads(task: str, outputs: int) -> None:
    model = ensemble_of(3, task, outputs)
    x, valid = both_streams()
    valid = {name: mask.index_fill(1, torch.tensor([4]), True) for name, mask in valid.items()}
    heads = [head for member in range(2) for head in model.heads(member)]
    each = [to_probabilities(logits(head, x[head.stream], valid[head.stream]), model.task) for head in heads]
    assert len(each) == 6
    assert not torch.allclose(each[0], each[1])
    found = to_probabilities(predicted(model, x, valid), model.task)
    torch.testing.assert_close(found, torch.stack(each).mean(dim=0), rtol=1e-5, atol=1e-6)


def test_clip_without_a_stream_is_predicted_by_the_other_member() -> None:
    """Also if the stream is absent; without any valid frame all members count, and logits are finite."""
    model = ensemble_of()
    x, valid = both_streams()
    valid["geometry"][1], valid["embeddings"][2] = False, False
    both = predicted(model, x, valid)
    alone = {
        head.stream: predicted(Ensemble([model.heads(member)], "binary").eval(), x, valid)
        for member, (head, _) in enumerate(map(model.heads, range(2)))
    }
    torch.testing.assert_close(both[1], alone["embeddings"][1])
    torch.testing.assert_close(both[2], alone["geometry"][2])
    for name, other in (("geometry", "embeddings"), ("embeddings", "geometry")):
        masked = valid | {name: torch.zeros_like(valid[name])}
        absent = predicted(model, {other: x[other]}, {other: valid[other]})
        assert torch.equal(predicted(model, x, masked), absent)
        seen = valid[other].any(dim=1)
        torch.testing.assert_close(absent[seen], alone[other][seen])
    nothing = {name: torch.zeros_like(mask) for name, mask in valid.items()}
    unknown = predicted(model, x, nothing)
    assert torch.isfinite(unknown).all()
    heads = [head for member in range(2) for head in model.heads(member)]
    each = [torch.sigmoid(logits(head, x[head.stream], nothing[head.stream])) for head in heads]
    torch.testing.assert_close(torch.sigmoid(unknown), torch.stack(each).mean(dim=0))


def test_models_of_a_fold_are_the_heads_of_that_fold() -> None:
    model = ensemble_of(3)
    x, valid = both_streams()
    for fold in range(3):
        part = model.of_fold(fold).eval()
        assert part.num_folds == 1
        assert [part.heads(member)[0] for member in range(2)] == [
            model.heads(member)[fold] for member in range(2)
        ]
    found = [predicted(model.of_fold(fold), x, valid) for fold in range(3)]
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize("task", ["binary", "multiclass", "ordinal"])
def test_loaded_ensemble_is_the_same_and_its_streams_have_one_order(task: str) -> None:
    outputs = num_outputs(task, 3 if task != "binary" else 2)  # type: ignore[arg-type]
    model = ensemble_of(2, task, outputs)
    x, valid = both_streams()
    configs = [
        MemberConfig(head.stream, head.config)  # type: ignore[arg-type]
        for head, _ in map(model.heads, range(2))
    ]
    twin = build_ensemble(configs, dict(reversed(DIMS.items())), model.task, 3 - (task == "binary"), 2)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(predicted(twin.eval(), x, valid), predicted(model, x, valid))
    turned = Ensemble([model.heads(1), model.heads(0)], model.task).eval()
    assert list(turned.dims) == list(model.dims) == list(twin.dims) == sorted(DIMS)
    torch.testing.assert_close(predicted(turned, x, valid), predicted(model, x, valid))
    assert torch.equal(turned.spread("geometry"), model.heads(1)[0].input.std)
