"""MediaPipe's TensorFlow Lite networks, run on OpenVINO without MediaPipe's graph."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from seqmodel.encoders.engine import cpu_options, import_openvino

Network = Callable[[np.ndarray], list[np.ndarray]]
"""A function from one input array to copies of the first two outputs."""


def open_network(model: bytes, threads: int = 1, side_px: int = 0) -> Network:
    """Compile a network for the CPU. side_px: input width and height, if the file has a dynamic shape."""
    openvino = import_openvino()
    core = openvino.Core()
    # The TensorFlow Lite reader needs a path. The weights stay mapped, so Windows cannot delete the file.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "network.tflite"
        path.write_bytes(model)
        network = core.read_model(path)
    if network.inputs[0].partial_shape.is_dynamic:
        network.reshape([1, side_px, side_px, 3])
    compiled = core.compile_model(network, "CPU", cpu_options("f32", threads))
    request = compiled.create_infer_request()
    inputs = np.zeros(tuple(compiled.input(0).shape), np.float32)
    request.set_input_tensor(openvino.Tensor(inputs, shared_memory=True))
    outputs = range(min(2, len(compiled.outputs)))

    def run(values: np.ndarray) -> list[np.ndarray]:
        inputs[...] = values
        request.infer()
        return [request.get_output_tensor(index).data.copy() for index in outputs]

    return run
