"""A float model as ONNX, quantized by ONNX Runtime's own tools, and sessions that run it.

The packages are imported where they are needed: each of them may be missing.
"""

from __future__ import annotations

import functools
import importlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.model import Gap

Run = Callable[[], Any]
_NAME = "x"


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="benchmarks-")


def _path(stem: str) -> Path:
    return Path(_folder().name) / f"{stem}.onnx"


def export(model: nn.Module, x: Tensor, stem: str) -> Path:
    """The file of a float model, by the exporter that needs no further package."""
    path = _path(f"{stem}-float")
    torch.onnx.export(
        model, (x,), str(path), dynamo=False, input_names=[_NAME], output_names=["y"], opset_version=17
    )
    return path


def quantized_dynamic(path: Path, reduce_range: bool) -> Path:
    """Quantized by `onnxruntime.quantization.quantize_dynamic`; a `Gap` where that leaves all as it is."""
    tools = importlib.import_module("onnxruntime.quantization")
    target = path.with_stem(path.stem + "-dynamic")
    tools.quantize_dynamic(
        _preprocessed(path), target, weight_type=tools.QuantType.QInt8, reduce_range=reduce_range
    )
    operators = {node.op_type for node in importlib.import_module("onnx").load(target).graph.node}
    if not operators & {"MatMulInteger", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul"}:
        raise Gap(f"its dynamic quantizer leaves {', '.join(sorted(operators & {'GRU', 'RNN'}))} in float")
    return target


def quantized_static(path: Path, calibration: Sequence[Tensor], reduce_range: bool) -> Path:
    """Quantized by `onnxruntime.quantization.quantize_static`: QDQ, weights per channel, min/max."""
    tools = importlib.import_module("onnxruntime.quantization")
    target = path.with_stem(path.stem + "-static")
    tools.quantize_static(
        _preprocessed(path),
        target,
        _reader(tools, calibration),
        quant_format=tools.QuantFormat.QDQ,
        per_channel=True,
        reduce_range=reduce_range,
        activation_type=tools.QuantType.QUInt8,
        weight_type=tools.QuantType.QInt8,
    )
    return target


def _preprocessed(path: Path) -> Path:
    logging.getLogger().setLevel(logging.ERROR)  # the tools print advice that was taken
    shapes = importlib.import_module("onnxruntime.quantization.shape_inference")
    target = path.with_stem(path.stem + "-shaped")
    shapes.quant_pre_process(path, target, skip_symbolic_shape=True)
    return target


def _reader(tools: Any, calibration: Sequence[Tensor]) -> Any:
    class Reader(tools.CalibrationDataReader):
        """Hands out the calibration batches one by one."""

        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            """The next batch, or None."""
            batch = next(self.batches, None)
            return None if batch is None else {_NAME: batch.contiguous().numpy()}

    return Reader()


def run_onnxruntime(path: Path, x: Tensor) -> Run:
    """A session on as many threads as torch has; its threads spin only while it runs."""
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning is ONNX Runtime's default and helps it; between its turns it must not take others' cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = {_NAME: x.contiguous().numpy()}
    return lambda: session.run(None, inputs)


def run_openvino(path: Path, x: Tensor) -> Run:
    """A compiled model on as many threads as torch has, one stream; float parts in float32, not bfloat16."""
    openvino = importlib.import_module("openvino")
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = openvino.Core().compile_model(str(path), "CPU", settings).create_infer_request()
    data = x.contiguous().numpy()
    output = request.get_output_tensor(0)

    def run() -> Any:
        request.infer({0: data}, share_inputs=True)
        return output.data

    return run
