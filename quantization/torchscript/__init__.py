"""Quantization of script modules (TorchScript): post-training, and on-device, on this library's observers.

TorchScript is deprecated in torch. For new work use the eager workflows of `quantization`; this package is
for models that exist as script modules and for the lite interpreter.
"""

from quantization.torchscript.device import finalize as finalize
from quantization.torchscript.graph import (
    convert_dynamic_jit as convert_dynamic_jit,
    convert_jit as convert_jit,
    fuse_conv_bn_jit as fuse_conv_bn_jit,
    prepare_dynamic_jit as prepare_dynamic_jit,
    prepare_jit as prepare_jit,
    quantize_dynamic_jit as quantize_dynamic_jit,
    quantize_jit as quantize_jit,
    script_qconfig as script_qconfig,
    script_qconfig_dict as script_qconfig_dict,
)
from quantization.torchscript.ondevice import (
    convert_ondevice_dynamic_jit as convert_ondevice_dynamic_jit,
    prepare_ondevice_dynamic_jit as prepare_ondevice_dynamic_jit,
    quantize_ondevice_dynamic_jit as quantize_ondevice_dynamic_jit,
)
from quantization.torchscript.passes import ScriptError as ScriptError
