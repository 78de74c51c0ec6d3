"""Engines: an encoder compiled for fast inference, on CPUs without importing torch.

An `Engine` is one encoder on one backend: OpenVINO (default on CPUs) or torch (CUDA, and as a reference on
CPUs). The converted network is cached under the hash of its weights, so torch is needed only the first time.
`numerics` describes backend and precision; stores record it and never compare it. F frames, D embedding.
"""

import contextlib
import json
import shutil
import sys
import tempfile
import uuid
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from features.cli import UserError
from features.cpu import usable_cores
from features.files import cache_dir
from features.recipe import EncoderId
from seqmodel.encoders.model_files import encoder_weights, sha256_of, write_cached

if TYPE_CHECKING:
    from torch import Tensor, nn

    from seqmodel.encoders.backbone import Encoder

IR = "network.xml"
"""File with the structure of a converted network; its weights are in the .bin file next to it."""
Backend = Literal["auto", "torch", "openvino"]
Precision = Literal["auto", "f32", "bf16"]
"""auto: bfloat16 if the processor (or GPU) supports it, else float32; docs/log.md has the differences."""


@dataclass(frozen=True)
class Engine:
    """One encoder on one backend."""

    encoder_id: EncoderId
    numerics: dict[str, Any]
    """backend, device, precision and versions."""
    run: Callable[[NDArray[np.uint8]], NDArray[np.float16]] = field(repr=False)

    def embed(self, crops: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Embeddings float16 (F,D) of crops (F,H,W,3) uint8 RGB.

        Raises TypeError for any other dtype or shape. Pixels are normalised inside.
        """
        if crops.dtype != np.uint8 or crops.ndim != 4 or crops.shape[-1] != 3:
            raise TypeError(
                f"an encoder needs RGB uint8 crops (F,H,W,3), got {crops.dtype} of shape {crops.shape}"
            )
        if not len(crops):
            return np.zeros((0, self.encoder_id.dim), np.float16)
        return self.run(crops)


def open_engine(
    name: str,
    weights: str = "imagenet",
    *,
    backend: Backend = "auto",
    device: str = "auto",
    precision: Precision = "auto",
    threads: int = 0,
    crop_px: int = 224,
) -> Engine:
    """The engine of an encoder, by name and weights ("imagenet", "random" or a file) as in `build_encoder`.

    `backend` auto is torch with a CUDA device, else OpenVINO. `device` is auto, cpu or cuda. `precision` is
    the requested one; `numerics` has the one in use. `threads` 0 = the backend's default. Raises UserError
    for weights that are not available (with address, cache path and option) and for combinations of backend
    and device that do not work.
    """

    def build() -> "tuple[Encoder, EncoderId]":
        from seqmodel.encoders.backbone import build_encoder

        return build_encoder(name, weights)

    identity_file = _identity_path(name, weights)
    if identity_file.is_file():  # known weights: the identity is read without building the network
        identity = EncoderId(**json.loads(identity_file.read_text(encoding="utf-8")))

        def build_same() -> "Encoder":
            encoder, found = build()
            if found.weights_sha256 != identity.weights_sha256:
                raise UserError(f"the weights {weights} of {name} were replaced while they were read")
            return encoder

        return open_identity(identity, build_same, backend, device, precision, threads, crop_px)
    encoder, identity = build()
    with contextlib.suppress(OSError):  # without a cache, the network is built each time
        write_cached(identity_file, json.dumps(vars(identity), ensure_ascii=False).encode())
    return open_identity(identity, lambda: encoder, backend, device, precision, threads, crop_px)


def import_openvino() -> Any:
    """The openvino module, with its telemetry disabled before the first import."""
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # makes its import fail without a message
    import openvino

    return openvino


def open_identity(
    identity: EncoderId,
    build: "Callable[[], Encoder]",
    backend: Backend,
    device: str,
    precision: Precision,
    threads: int,
    crop_px: int,
) -> Engine:
    """The engine of the encoder with this identity; `build` is called only if the converted network is not in
    the cache. Raises UserError as `open_engine`."""
    if device not in ("auto", "cpu") and not device.startswith("cuda"):
        raise UserError(f"--device must be auto, cpu or cuda, got {device!r}")
    if backend == "openvino" and device.startswith("cuda"):
        raise UserError("OpenVINO does not run on CUDA; use --backend torch, or --device cpu")
    if device == "auto":
        device = "cuda" if backend != "openvino" and _has_cuda() else "cpu"
    if backend == "torch" or device.startswith("cuda"):
        return _open_torch(identity, build, device, precision, threads)
    return _open_openvino(identity, build, precision, threads, crop_px)


def _open_openvino(
    identity: EncoderId, build: "Callable[[], Encoder]", precision: Precision, threads: int, crop_px: int
) -> Engine:
    """The OpenVINO engine. It runs frame by frame: on a CPU that is as fast as a batch, and results for files
    and camera are then identical bit for bit."""
    openvino = import_openvino()
    release = openvino.__version__.partition("-")[0]
    folder = cache_dir() / "openvino" / f"{identity.name}-{identity.weights_sha256[:24]}-{crop_px}-{release}"
    with contextlib.ExitStack() as stack:
        if not (folder / IR).is_file():
            network = _converted(build(), crop_px)
            try:
                _save(openvino, network, folder)
            except OSError:  # another process was first, or the cache cannot be written
                if not (folder / IR).is_file():
                    folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "converted"
                    _save(openvino, network, folder)
        # Always compiled from the file: the network in memory gives values that differ in the last bits.
        model = compile_file(folder / IR, resolve_precision(precision), threads)
    numerics = {
        "backend": "openvino",
        "device": "cpu",
        # The precision in use: a CPU without bf16 arithmetic uses f32.
        "precision": model.get_property("INFERENCE_PRECISION_HINT").to_string(),
        "version": metadata.version("openvino"),
    }
    return Engine(identity, numerics, frame_by_frame(model, identity.dim))


def _open_torch(
    identity: EncoderId, build: "Callable[[], Encoder]", device: str, precision: Precision, threads: int
) -> Engine:
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("torch finds no CUDA device on this machine; use --device cpu")
    if threads:
        torch.set_num_threads(threads)
    if precision == "auto":
        # On a CPU torch is the reference: float32.
        precision = "bf16" if device.startswith("cuda") and torch.cuda.is_bf16_supported() else "f32"
    encoder = build().eval().to(device)
    encoder.to(memory_format=torch.channels_last)

    def run(crops: NDArray[np.uint8]) -> NDArray[np.float16]:
        with torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=precision == "bf16"):
            return encoder.embed(crops)

    numerics = {"backend": "torch", "device": device, "precision": precision, "version": torch.__version__}
    return Engine(identity, numerics, run)


def compile_file(path: Path, precision: Literal["f32", "bf16"], threads: int) -> Any:
    """A network file (.xml with its .bin, or .onnx) compiled for the CPU."""
    core = import_openvino().Core()
    # Read as bytes, because OpenVINO cannot open every path.
    weights = [path.with_suffix(".bin").read_bytes()] if path.suffix == ".xml" else []
    network = core.read_model(path.read_bytes(), *weights)
    return core.compile_model(network, "CPU", cpu_options(precision, threads))


def frame_by_frame(model: Any, dim: int) -> Callable[[NDArray[np.uint8]], NDArray[np.float16]]:
    """The function from crops (F,H,W,3) uint8 to embeddings (F,D) float16 of a compiled encoder."""
    request = model.create_infer_request()

    def run(crops: NDArray[np.uint8]) -> NDArray[np.float16]:
        found = np.empty((len(crops), dim), np.float16)
        for index in range(len(crops)):
            request.infer([np.ascontiguousarray(crops[index : index + 1])])
            found[index] = request.get_output_tensor().data[0]
        return found

    return run


def compiled(network: "nn.Module", crop_px: int) -> Callable[[NDArray[np.uint8]], NDArray[np.float16]]:
    """A network compiled for the CPU, as a function from RGB uint8 crops (F,H,W,3) to outputs (F,…) float16.

    It runs one frame per core in parallel, which is faster than several threads on one frame. It does not use
    AsyncInferQueue, which can deadlock: its Python callback needs the global lock when it returns, and a
    model that is freed at that moment holds the lock and waits for the callback's thread.
    """
    openvino, cores = import_openvino(), usable_cores()
    options = cpu_options("f32", cores) | {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": cores}
    model = openvino.Core().compile_model(_converted(network, crop_px), "CPU", options)
    requests = [model.create_infer_request() for _ in range(cores)]

    def run(crops: NDArray[np.uint8]) -> NDArray[np.float16]:
        found = np.empty((len(crops), *model.output(0).shape[1:]), np.float16)
        for index in range(len(crops) + cores):
            request, finished = requests[index % cores], index - cores
            if 0 <= finished < len(crops):
                request.wait()
                found[finished] = request.get_output_tensor().data[0]
            if index < len(crops):
                request.start_async([np.ascontiguousarray(crops[index : index + 1])])
        return found

    return run


def precision_of(numerics: Mapping[str, Any]) -> Precision:
    """The precision for a run whose store has these numerics: float32 if the store used it, else auto."""
    return "f32" if numerics.get("precision") == "f32" else "auto"


def resolve_precision(precision: Precision) -> Literal["f32", "bf16"]:
    """The precision in use: `auto` is bf16 if this processor has instructions for it, else f32."""
    if precision != "auto":
        return precision
    capabilities = import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "bf16" if "BF16" in capabilities else "f32"


def cpu_options(precision: Literal["f32", "bf16"], threads: int) -> dict[str, Any]:
    """OpenVINO's compile options for all networks; `threads` 0 = OpenVINO's default.

    Threads are not pinned to cores: each process would pin its first thread to the first core, and the
    workers of an extraction would all run there.
    """
    options: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
    }
    return options | ({"INFERENCE_NUM_THREADS": threads} if threads else {})


def convert_network(module: "nn.Module", example: "tuple[Tensor, ...]") -> Any:
    """A torch network converted to OpenVINO, for inputs with the shapes of `example`.

    OpenVINO traces it with torch.jit. torch's second trace, which only checks the first one, is switched off,
    because it would double the time.
    """
    openvino = import_openvino()
    import torch
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    given = example if len(example) > 1 else example[0]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated; it also warns about our dtype check
        decoder = TorchScriptPythonDecoder(
            module.eval().cpu(), example_input=given, trace_kwargs={"check_trace": False}
        )
        return openvino.convert_model(decoder, input=[tuple(tensor.shape) for tensor in example])


def _converted(network: "nn.Module", crop_px: int) -> Any:
    """A network for crops converted to OpenVINO, for one frame at a time."""
    import torch

    return convert_network(network, (torch.zeros(1, crop_px, crop_px, 3, dtype=torch.uint8),))


def _save(openvino: Any, network: Any, folder: Path) -> None:
    """Write a converted network as OpenVINO IR in float32; the folder is renamed when complete, because
    several workers may write it. Raises OSError if the folder cannot be written."""
    partial = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.partial")
    partial.mkdir(parents=True)
    try:
        openvino.save_model(network, partial / IR, compress_to_fp16=False)
        partial.rename(folder)  # fails if another process was first: its files are equal
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _has_cuda() -> bool:
    """Whether a CUDA device is available; imports torch only if there is an NVIDIA driver."""
    if not (Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")):
        return False
    import torch

    return torch.cuda.is_available()


def _identity_path(name: str, weights: str) -> Path:
    """Cache path of the identity: by the hash of the weights file, or for random weights by the versions that
    generate them.
    """
    if weights == "random":
        code_sha256 = sha256_of(Path(__file__).with_name("backbone.py"))[:12]
        key = f"random-{code_sha256}-{metadata.version('torch')}-{metadata.version('torchvision')}"
    else:
        key = sha256_of(encoder_weights(name, weights))[:24]
    return cache_dir() / "identities" / f"{name}-{key}.json"
