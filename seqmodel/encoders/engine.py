"""The encoder, compiled: crops to embeddings at the speed a CPU has, without importing torch.

An `Engine` is one encoder on one backend: OpenVINO (default on CPUs) or torch (CUDA, and as a second
opinion). The converted network is kept in the cache under the hash of its weights, so torch is needed only
the first time. What the engine is goes into `numerics`, which stores record and never compare. Knows
nothing about videos or heads. F frames, D embedding.
"""

import json
import shutil
import sys
import uuid
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from features.cpu import usable_cores
from features.files import cache_dir
from features.recipe import EncoderId
from seqmodel.encoders.model_files import encoder_weights, sha256_of, write_cached

if TYPE_CHECKING:
    from torch import Tensor, nn

    from seqmodel.encoders.backbone import Encoder

IR = "network.xml"
"""A converted network's description; its weights lie beside it as .bin."""
Backend = Literal["auto", "torch", "openvino"]
Precision = Literal["auto", "f32", "bf16"]
"""auto: bfloat16 where the processor (or GPU) computes in it, else float32; docs/log.md has the price."""


@dataclass(frozen=True)
class Engine:
    """One encoder, ready to run."""

    encoder_id: EncoderId
    numerics: dict[str, Any]
    """backend, device, precision and versions."""
    run: Callable[[NDArray[np.uint8]], NDArray[np.float16]] = field(repr=False)

    def embed(self, crops: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Embeddings float16 (F,D) of crops (F,H,W,3) uint8 RGB.

        Raises TypeError for any other dtype or shape: pixels are normalised inside.
        """
        if crops.dtype != np.uint8 or crops.ndim != 4 or crops.shape[-1] != 3:
            raise TypeError(
                f"an encoder takes RGB uint8 crops (F,H,W,3), got {crops.dtype} of shape {crops.shape}"
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
    """The engine of an encoder by name and weights ("imagenet", "random" or a file), as `build_encoder`
    takes them.

    `backend` auto is torch where there is a CUDA device, else OpenVINO. `device` is auto, cpu or cuda.
    `precision` is what is asked for; `numerics` says what it became. `threads` 0 leaves their number to the
    backend. Raises ValueError for weights that cannot be had (naming address, cache path and flag) and for
    combinations that no backend offers.
    """

    def build() -> "tuple[Encoder, EncoderId]":
        from seqmodel.encoders.backbone import build_encoder

        return build_encoder(name, weights)

    noted = _identity_path(name, weights)
    if noted.is_file():  # weights seen before: the network need not be built to know them
        identity = EncoderId(**json.loads(noted.read_text(encoding="utf-8")))
        return open_identity(identity, lambda: build()[0], backend, device, precision, threads, crop_px)
    encoder, identity = build()
    write_cached(noted, json.dumps(vars(identity), ensure_ascii=False).encode())
    return open_identity(identity, lambda: encoder, backend, device, precision, threads, crop_px)


def import_openvino() -> Any:
    """The openvino module, with its usage reporting shut out before the first import."""
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # makes its import fail, quietly
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
    """The engine of the encoder of that identity, which is only built where its converted network is not in
    the cache. Raises ValueError as `open_engine` does."""
    if device not in ("auto", "cpu") and not device.startswith("cuda"):
        raise ValueError(f"--device takes auto, cpu or cuda, got {device!r}")
    if backend == "openvino" and device.startswith("cuda"):
        raise ValueError("OpenVINO does not run on CUDA; use --backend torch, or --device cpu")
    if device == "auto":
        device = "cuda" if backend != "openvino" and _has_cuda() else "cpu"
    if backend == "torch" or device.startswith("cuda"):
        return _open_torch(identity, build, device, precision, threads)
    return _open_openvino(identity, build, precision, threads, crop_px)


def _open_openvino(
    identity: EncoderId, build: "Callable[[], Encoder]", precision: Precision, threads: int, crop_px: int
) -> Engine:
    """Frames go one by one: on a CPU that is as fast as a batch, and file and camera then agree bit for
    bit.
    """
    openvino = import_openvino()
    release = openvino.__version__.partition("-")[0]
    folder = cache_dir() / "openvino" / f"{identity.name}-{identity.weights_sha256[:24]}-{crop_px}-{release}"
    if not (folder / IR).is_file():
        _convert(openvino, build(), crop_px, folder)
    model = compile_file(folder / IR, resolve_precision(precision), threads)
    numerics = {
        "backend": "openvino",
        "device": "cpu",
        # What was asked, or what it became: a CPU without bf16 arithmetic runs f32.
        "precision": model.get_property("INFERENCE_PRECISION_HINT").to_string(),
        "version": metadata.version("openvino"),
    }
    return Engine(identity, numerics, frame_by_frame(model, identity.dim))


def _open_torch(
    identity: EncoderId, build: "Callable[[], Encoder]", device: str, precision: Precision, threads: int
) -> Engine:
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("there is no CUDA device here that torch can use; try --device cpu")
    if threads:
        torch.set_num_threads(threads)
    if precision == "auto":
        # On a CPU torch is the second opinion: as exact as it comes.
        precision = "bf16" if device.startswith("cuda") and torch.cuda.is_bf16_supported() else "f32"
    encoder = build().eval().to(device)
    encoder.to(memory_format=torch.channels_last)

    def run(crops: NDArray[np.uint8]) -> NDArray[np.float16]:
        with torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=precision == "bf16"):
            return encoder.embed(crops)

    numerics = {"backend": "torch", "device": device, "precision": precision, "version": torch.__version__}
    return Engine(identity, numerics, run)


def compile_file(path: Path, precision: Literal["f32", "bf16"], threads: int) -> Any:
    """A network file (.xml with its .bin, or .onnx), compiled for the CPU."""
    core = import_openvino().Core()
    # Read as bytes: the path may hold any letters.
    weights = [path.with_suffix(".bin").read_bytes()] if path.suffix == ".xml" else []
    network = core.read_model(path.read_bytes(), *weights)
    return core.compile_model(network, "CPU", cpu_options(precision, threads))


def frame_by_frame(model: Any, dim: int) -> Callable[[NDArray[np.uint8]], NDArray[np.float16]]:
    """A compiled encoder as a function from crops (F,H,W,3) uint8 to embeddings (F,D) float16."""
    request = model.create_infer_request()

    def run(crops: NDArray[np.uint8]) -> NDArray[np.float16]:
        found = np.empty((len(crops), dim), np.float16)
        for index in range(len(crops)):
            request.infer([np.ascontiguousarray(crops[index : index + 1])])
            found[index] = request.get_output_tensor().data[0]
        return found

    return run


def compiled(network: "nn.Module", crop_px: int) -> Callable[[NDArray[np.uint8]], NDArray[np.float16]]:
    """A network over RGB uint8 crops, compiled for the CPU: crops (F,H,W,3) to its outputs (F,…) float16.

    As many frames at once as there are cores, which share less than several threads on one frame do. No
    AsyncInferQueue: its Python callback needs the interpreter's lock when it returns, while a model that is
    freed in that moment holds the lock and waits for the callback's thread forever.
    """
    openvino, cores = import_openvino(), usable_cores()
    options = cpu_options("f32", cores) | {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": cores}
    model = openvino.Core().compile_model(_converted(network, crop_px), "CPU", options)
    requests = [model.create_infer_request() for _ in range(cores)]

    def run(crops: NDArray[np.uint8]) -> NDArray[np.float16]:
        found = np.empty((len(crops), *model.output(0).shape[1:]), np.float16)
        for place in range(len(crops) + cores):
            request, finished = requests[place % cores], place - cores
            if 0 <= finished < len(crops):
                request.wait()
                found[finished] = request.get_output_tensor().data[0]
            if place < len(crops):
                request.start_async([np.ascontiguousarray(crops[place : place + 1])])
        return found

    return run


def precision_of(numerics: Mapping[str, Any]) -> Precision:
    """How a run looks at faces whose store has these numerics: in float32 where that was, else as is best
    here."""
    return "f32" if numerics.get("precision") == "f32" else "auto"


def resolve_precision(precision: Precision) -> Literal["f32", "bf16"]:
    """What `auto` means on this processor: bf16 where it has instructions for it."""
    if precision != "auto":
        return precision
    capabilities = import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "bf16" if "BF16" in capabilities else "f32"


def cpu_options(precision: Literal["f32", "bf16"], threads: int) -> dict[str, Any]:
    """What every network of ours is compiled with; `threads` 0 leaves their number to OpenVINO.

    Never pinned: each process would pin its first thread to the machine's first core, and the workers of an
    extraction would queue there while other cores idle.
    """
    options: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
    }
    return options | ({"INFERENCE_NUM_THREADS": threads} if threads else {})


def convert_network(module: "nn.Module", example: "tuple[Tensor, ...]") -> Any:
    """A torch network as OpenVINO's, for inputs of just the shapes of `example`.

    OpenVINO traces it with torch.jit; torch's own second trace, which only checks the first one, would take
    as long again.
    """
    openvino = import_openvino()
    import torch
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    given = example if len(example) > 1 else example[0]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated; our dtype check is no data flow
        decoder = TorchScriptPythonDecoder(
            module.eval().cpu(), example_input=given, trace_kwargs={"check_trace": False}
        )
        return openvino.convert_model(decoder, input=[tuple(tensor.shape) for tensor in example])


def _converted(network: "nn.Module", crop_px: int) -> Any:
    """A network over crops as OpenVINO's, for one frame at a time."""
    import torch

    return convert_network(network, (torch.zeros(1, crop_px, crop_px, 3, dtype=torch.uint8),))


def _convert(openvino: Any, encoder: "Encoder", crop_px: int, folder: Path) -> None:
    """Write the encoder as OpenVINO's IR in float32: a folder that appears whole, since workers may race."""
    network = _converted(encoder, crop_px)
    partial = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.partial")
    partial.mkdir(parents=True)
    openvino.save_model(network, partial / IR, compress_to_fp16=False)
    try:
        partial.rename(folder)
    except OSError:  # another process was first: its files are as good
        shutil.rmtree(partial, ignore_errors=True)
        if not (folder / IR).is_file():
            raise


def _has_cuda() -> bool:
    """Whether a CUDA device can be used; asks torch only where an NVIDIA driver shows."""
    if not (Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")):
        return False
    import torch

    return torch.cuda.is_available()


def _identity_path(name: str, weights: str) -> Path:
    """Where the identity is noted: by the file's hash, or for random weights by the release that draws
    them.
    """
    if weights == "random":
        drawn_by = sha256_of(Path(__file__).with_name("backbone.py"))[:12]
        key = f"random-{drawn_by}-{metadata.version('torch')}-{metadata.version('torchvision')}"
    else:
        key = sha256_of(encoder_weights(name, weights))[:24]
    return cache_dir() / "identities" / f"{name}-{key}.json"
