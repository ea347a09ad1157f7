"""torch's kernels for weights with whole blocks of zeros, `torch.ops.sparse`; the only file that names them.

Static layers run on the engine fbgemm with blocks of 1 x 4; dynamic ones on qnnpack with 1 x 4, and on some
processors with 8 x 1.
"""

from __future__ import annotations

import torch

from quantization.backends.ops import PackedOps
from quantization.errors import Unsupported

_s = torch.ops.sparse
_ENGINES = ("fbgemm", "qnnpack")


def require_engine() -> None:
    """Raise an `Unsupported` when the selected engine cannot pack such a weight."""
    engine = torch.backends.quantized.engine
    if engine not in _ENGINES:
        raise Unsupported(
            f"torch.backends.quantized.engine is '{engine}', which has no kernels for block-sparse weights: "
            "set it to 'fbgemm' for static quantization, or to 'qnnpack' for dynamic"
        )


# prepack(weight, bias, rows, columns) takes the block's shape, and unpack(packed) gives (weight, bias, [rows,
# columns]); run is static (x, packed, scale, zero_point), or dynamic (x, packed).
SPARSE_LINEAR = PackedOps(_s.qlinear_prepack, _s.qlinear_unpack, _s.qlinear, require_engine)
SPARSE_LINEAR_DYNAMIC = PackedOps(_s.qlinear_prepack, _s.qlinear_unpack, _s.qlinear_dynamic, require_engine)
