"""Builds a live prediction with chosen fields."""

from live.inference.predictor import Prediction


def prediction(**changes: object) -> Prediction:
    """A prediction in state ok; `changes` replaces fields."""
    fields = dict(
        t_s=20.0, state="ok", label="engaged", names=("distracted", "engaged"), task="binary", logits=(1.0,),
        p_raw=(0.3, 0.7), p=(0.3, 0.7), coverage=1.0, filled=1.0, box=(100.0, 80.0, 180.0, 160.0),
        others=((20.0, 20.0, 60.0, 60.0),), latency_ms=6.0,
    )  # fmt: skip
    return Prediction(**fields | changes)  # type: ignore[arg-type]
