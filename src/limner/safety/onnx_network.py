"""A network in an ONNX file, run on one thread of the CPU by OpenVINO or onnxruntime, whichever is installed.

OpenVINO is preferred: it is faster where the CPU computes in bf16.
"""

import hashlib
import importlib
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from limner import openvino_runtime
from limner.errors import InvalidCheckpoint, InvalidRequest, ModelNotFound, NumericalError

INSTALL = 'pip install "limner[nsfw]"'

Array = NDArray[np.float32]
_Run = Callable[[Array], Array]


class OnnxNetwork:
    """A network with one input and one output that counts. Safe to use from any thread.

    Attributes:
        version: The beginning of the file's SHA-256, and what runs it in which precision.

    Args:
        path: The file.
        shape: Shape of the input, for one image.
        precision: "auto" is bf16 where OpenVINO computes in it, else fp32.
        sha256: SHA-256 that the file must have, in hexadecimal; None for any.

    Raises:
        ModelNotFound: There is no such file.
        InvalidRequest: Neither OpenVINO nor onnxruntime is installed, or the precision is not computed here.
        InvalidCheckpoint: The file is no ONNX network, has other inputs, or another SHA-256.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, ...],
        precision: Literal["auto", "fp32", "bf16"] = "auto",
        sha256: str | None = None,
    ) -> None:
        if not path.is_file():
            raise ModelNotFound(f"there is no ONNX file {path}", hint="name the file of an image classifier")
        self._path = path
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 not in (None, digest):
            raise InvalidCheckpoint(f"{path} has the SHA-256 {digest}; expected {sha256}")
        runtime = next((name for name in ("openvino", "onnxruntime") if find_spec(name) is not None), None)
        if runtime is None:
            raise InvalidRequest(
                f"{path.name} needs openvino or onnxruntime, and neither is installed", hint=INSTALL
            )
        has_bf16 = runtime == "openvino" and openvino_runtime.computes_in_bf16()
        if precision == "bf16" and not has_bf16:
            raise InvalidRequest(
                f"precision is 'bf16', which {runtime} does not compute {path.name} in on this CPU",
                hint="use fp32 or auto",
            )
        in_bf16 = has_bf16 and precision != "fp32"
        start = _openvino if runtime == "openvino" else _onnxruntime
        try:
            self._run: _Run = start(path, shape, in_bf16)
        # Both libraries have exceptions of their own for files that they cannot read.
        except Exception as error:
            raise InvalidCheckpoint(f"{path} cannot be run as an ONNX network: {_reason(error)}") from error
        self.version = f"{digest[:12]} {runtime} {version(runtime)} {'bf16' if in_bf16 else 'fp32'}"

    def __call__(self, values: Array) -> Array:
        """The first output for an input of the network's shape.

        Raises:
            InvalidCheckpoint: The network refuses the input.
            NumericalError: The output has NaN or infinity.
        """
        try:
            output = self._run(np.ascontiguousarray(values, np.float32))
        except Exception as error:
            raise InvalidCheckpoint(
                f"{self._path} does not take an input {list(values.shape)}: {_reason(error)}"
            ) from error
        if not np.isfinite(output).all():
            raise NumericalError(f"the network {self._path.name} returned NaN or infinity for an image")
        return output


def _reason(error: Exception) -> str:
    """The last line of a library's message: OpenVINO's begin with places in its source code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)


def _openvino(path: Path, shape: tuple[int, ...], in_bf16: bool) -> _Run:
    core, lock = openvino_runtime.core(), Lock()
    graph = core.read_model(path)
    if len(graph.inputs) != 1:
        raise ValueError(f"it has {len(graph.inputs)} inputs; expected 1")
    graph.reshape(list(shape))
    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if in_bf16 else "f32",
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
    }
    request = core.compile_model(graph, "CPU", options).create_infer_request()

    def run(values: Array) -> Array:
        with lock:
            request.infer([values], share_inputs=True)
            # A view of memory that the next run overwrites.
            return np.array(request.get_output_tensor(0).data, np.float32)

    return run


def _onnxruntime(path: Path, shape: tuple[int, ...], in_bf16: bool) -> _Run:
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; warnings would go to stderr
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise ValueError(f"it has {len(inputs)} inputs; expected 1")
    output = session.get_outputs()[0].name

    def run(values: Array) -> Array:
        return np.asarray(session.run([output], {inputs[0].name: values})[0], np.float32)

    return run
