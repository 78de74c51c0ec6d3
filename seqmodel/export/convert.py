"""Conversion of encoder and head to OpenVINO and ONNX files.

F frames, T frames of a window, D embedding, O outputs.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from features.cli import UserError
from features.recipe import to_json
from seqmodel.encoders.engine import convert_network, import_openvino
from seqmodel.heads.ensemble import Ensemble
from seqmodel.runs.card import Card, card_to_json

OPSET = 18


class FlatHead(nn.Module):
    """A head with positional inputs: for each stream its values (B, T, D), then its validity (B, T)."""

    def __init__(self, head: Ensemble) -> None:
        super().__init__()
        self.head = head

    def forward(self, *inputs: Tensor) -> Tensor:
        """Logits (B, O)."""
        names = list(self.head.dims)
        return self.head(
            dict(zip(names, inputs[::2], strict=True)), dict(zip(names, inputs[1::2], strict=True))
        )


def metadata_of(card: Card) -> dict[str, str]:
    """Metadata of each model file: recipe, labels, task, calibration and input format."""
    return {
        "recipe": json.dumps(to_json(card.recipe), ensure_ascii=False),
        "labels": json.dumps(list(card.labelling.names), ensure_ascii=False),
        "task": card.labelling.task,
        "calibration": json.dumps(card_to_json(card)["calibration"]),
        "input": "uint8 RGB crops (1, H, W, 3); normalisation is included; embeddings are rounded to float16",
    }


def to_openvino(
    module: nn.Module, example: tuple[Tensor, ...], path: Path, metadata: Mapping[str, str]
) -> None:
    """Write the OpenVINO files `path` (.xml) and .bin; the inputs have the shapes of `example`."""
    network = convert_network(module, example)
    for key, value in metadata.items():
        network.set_rt_info(value, ["brainbuddy", key])
    import_openvino().save_model(network, path, compress_to_fp16=False)


def to_onnx(
    module: nn.Module,
    example: tuple[Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    path: Path,
    metadata: Mapping[str, str],
) -> None:
    """Write one self-contained ONNX file. Raises UserError if the packages for it are not installed."""
    onnx = import_onnx()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        program = torch.onnx.export(
            module.eval(),
            example,
            input_names=inputs,
            output_names=outputs,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, dict(metadata))
    path.write_bytes(model.SerializeToString())


def import_onnx() -> Any:
    """The onnx module. Raises UserError if the packages for export are not installed."""
    try:
        import onnx
        import onnxscript  # noqa: F401  # torch's exporter needs it
    except ImportError as error:
        raise UserError(
            f"export to ONNX needs the package {error.name}: pip install 'brainbuddy[export]'"
        ) from error
    return onnx
