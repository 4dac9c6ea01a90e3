"""What the machine itself can do: reading memory, and multiplying in int8."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx_ir as ir

from phi_edge.engine.session import import_onnxruntime

from .protocol import Figures, serve

# Far larger than a processor's cache.
_BUFFER_BYTES = 2**30
_ROWS, _IN, _OUT, _BLOCK = 128, 3072, 16384, 128


class Machine:
    """Buffers and a graph to measure with."""

    def __init__(self, _: str) -> None:
        self._threads = os.cpu_count() or 1
        self._buffer = np.ones(_BUFFER_BYTES // 8, np.uint64)
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = 0
        model = ir.to_proto(_matmul()).SerializeToString()
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._x = np.random.default_rng(0).standard_normal((_ROWS, _IN), np.float32)

    def bandwidth(self) -> Figures:
        """Read a buffer with all cores, a few times; the fastest counts."""
        parts = np.array_split(self._buffer, self._threads)
        rates = []
        with ThreadPoolExecutor(self._threads) as pool:
            for _ in range(5):
                start = time.perf_counter()
                list(pool.map(np.bitwise_or.reduce, parts))
                rates.append(_BUFFER_BYTES / (time.perf_counter() - start))
        return {"read_bytes_per_s": max(rates)}

    def int8(self) -> Figures:
        """Multiply 128 rows by a 4-bit matrix with 8-bit activations; the fastest counts."""
        rates = []
        for _ in range(5):
            start = time.perf_counter()
            self._session.run(None, {"x": self._x})
            rates.append(2 * _ROWS * _IN * _OUT / (time.perf_counter() - start))
        return {"int8_flop_per_s": max(rates)}


def _matmul() -> ir.Model:
    """`MatMulNBits`, 4-bit, at accuracy level 4: ONNX Runtime's fastest integer product."""
    rng = np.random.default_rng(0)
    packed = rng.integers(0, 256, (_OUT, _IN // _BLOCK, _BLOCK // 2), np.uint8)
    scales = np.full((_OUT, _IN // _BLOCK), 0.01, np.float32)
    x = ir.val("x", ir.DataType.FLOAT, [_ROWS, _IN])
    weights = [
        ir.val(name, const_value=ir.tensor(array, name=name))
        for name, array in (("packed", packed), ("scales", scales))
    ]
    node = ir.node(
        "MatMulNBits",
        [x, *weights],
        {"K": _IN, "N": _OUT, "bits": 4, "block_size": _BLOCK, "accuracy_level": 4},
        domain="com.microsoft",
        num_outputs=1,
    )
    node.outputs[0].name, node.outputs[0].dtype = "y", ir.DataType.FLOAT
    graph = ir.Graph(
        [x],
        node.outputs,
        nodes=[node],
        initializers=weights,
        opset_imports={"": 18, "com.microsoft": 1},
    )
    return ir.Model(graph, ir_version=10)


if __name__ == "__main__":
    serve(Machine)
