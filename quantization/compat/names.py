"""Which of our modules answers for which module of torch.ao. Pure data."""

from __future__ import annotations

_NN = "quantization.nn."
_OBSERVERS = ("observers", "observers.base", "observers.dtypes", "observers.state", "observers.factory")
_QUANTIZED = (_NN + "quantized", _NN + "functional_modules", _NN + "modes.static", _NN + "packed_params")
_DYNAMIC = (_NN + "dynamic",)
_QAT = (_NN + "qat",)
_FUSED = (_NN + "fused",)
_REFERENCE = (_NN + "reference",)
_WORKFLOWS = tuple("quantization.workflows." + name for name in ("ptq", "qat", "dynamic", "tables"))
_ENGINE = tuple("quantization.engine." + name for name in ("propagate", "swap", "observe", "tree"))
_FUSING = ("quantization.workflows.fusing", "quantization.workflows.fuser_methods")
_QCONFIG = ("quantization.qconfig",)
_QUANT_TYPE = ("quantization.quant_type",)
_TORCHSCRIPT = tuple("quantization.torchscript." + name for name in ("graph", "ondevice", "checks"))

# torch.ao's module -> ours, in the order they are asked. A source that does not exist (yet) is passed over.
SOURCES: dict[str, tuple[str, ...]] = {
    "torch.ao": (),
    "torch.ao.quantization": ("quantization", "observers", *_WORKFLOWS, *_QCONFIG),
    "torch.ao.quantization.quantize": (*_WORKFLOWS, *_ENGINE, *_QCONFIG),
    "torch.ao.quantization.fuse_modules": _FUSING,
    "torch.ao.quantization.fuser_method_mappings": _FUSING,
    "torch.ao.quantization.observer": _OBSERVERS,
    "torch.ao.quantization.fake_quantize": _OBSERVERS,
    "torch.ao.quantization._learnable_fake_quantize": ("observers",),
    "torch.ao.quantization.qconfig": (*_QCONFIG, *_OBSERVERS),
    "torch.ao.quantization.qconfig_mapping": ("quantization.qconfig_mapping", *_QCONFIG),
    "torch.ao.quantization.quant_type": _QUANT_TYPE,
    "torch.ao.quantization.quantization_mappings": ("quantization.workflows.tables",),
    "torch.ao.quantization.quantize_jit": (*_TORCHSCRIPT, *_QUANT_TYPE, *_QCONFIG),
    "torch.ao.quantization.stubs": ("quantization.stubs",),
    "torch.ao.quantization.utils": (*_QUANT_TYPE, "quantization.qparams", *_OBSERVERS, *_ENGINE),
    "torch.ao.nn": (),
    "torch.ao.nn.intrinsic": _FUSED,
    "torch.ao.nn.intrinsic.modules": _FUSED,
    "torch.ao.nn.intrinsic.modules.fused": _FUSED,
    "torch.ao.nn.intrinsic.qat": _QAT,
    "torch.ao.nn.intrinsic.qat.modules": _QAT,
    "torch.ao.nn.intrinsic.qat.modules.conv_fused": (*_QAT, _NN + "modes.qat_batchnorm"),
    "torch.ao.nn.intrinsic.qat.modules.linear_fused": _QAT,
    "torch.ao.nn.intrinsic.qat.modules.linear_relu": _QAT,
    "torch.ao.nn.intrinsic.quantized": _QUANTIZED,
    "torch.ao.nn.intrinsic.quantized.modules": _QUANTIZED,
    "torch.ao.nn.intrinsic.quantized.modules.bn_relu": _QUANTIZED,
    "torch.ao.nn.intrinsic.quantized.modules.conv_add": _QUANTIZED,
    "torch.ao.nn.intrinsic.quantized.modules.conv_relu": _QUANTIZED,
    "torch.ao.nn.intrinsic.quantized.modules.linear_relu": _QUANTIZED,
    "torch.ao.nn.intrinsic.quantized.dynamic": _DYNAMIC,
    "torch.ao.nn.intrinsic.quantized.dynamic.modules": _DYNAMIC,
    "torch.ao.nn.intrinsic.quantized.dynamic.modules.linear_relu": _DYNAMIC,
    "torch.ao.nn.qat": _QAT,
    "torch.ao.nn.qat.modules": _QAT,
    "torch.ao.nn.qat.modules.conv": _QAT,
    "torch.ao.nn.qat.modules.embedding_ops": _QAT,
    "torch.ao.nn.qat.modules.linear": _QAT,
    "torch.ao.nn.qat.dynamic": (_NN + "qat_dynamic",),
    "torch.ao.nn.qat.dynamic.modules": (_NN + "qat_dynamic",),
    "torch.ao.nn.qat.dynamic.modules.linear": (_NN + "qat_dynamic",),
    "torch.ao.nn.quantizable": (_NN + "quantizable",),
    "torch.ao.nn.quantizable.modules": (_NN + "quantizable",),
    "torch.ao.nn.quantizable.modules.activation": (_NN + "quantizable",),
    "torch.ao.nn.quantizable.modules.rnn": (_NN + "quantizable",),
    "torch.ao.nn.quantized": _QUANTIZED,
    "torch.ao.nn.quantized.functional": (_NN + "functional",),
    "torch.ao.nn.quantized.modules": _QUANTIZED,
    "torch.ao.nn.quantized.modules.activation": _QUANTIZED,
    "torch.ao.nn.quantized.modules.batchnorm": (*_QUANTIZED, _NN + "norms"),
    "torch.ao.nn.quantized.modules.conv": _QUANTIZED,
    "torch.ao.nn.quantized.modules.dropout": _QUANTIZED,
    "torch.ao.nn.quantized.modules.embedding_ops": _QUANTIZED,
    "torch.ao.nn.quantized.modules.functional_modules": _QUANTIZED,
    "torch.ao.nn.quantized.modules.linear": _QUANTIZED,
    "torch.ao.nn.quantized.modules.normalization": _QUANTIZED,
    "torch.ao.nn.quantized.modules.rnn": _QUANTIZED,
    "torch.ao.nn.quantized.modules.utils": _QUANTIZED,
    "torch.ao.nn.quantized.dynamic": _DYNAMIC,
    "torch.ao.nn.quantized.dynamic.modules": _DYNAMIC,
    "torch.ao.nn.quantized.dynamic.modules.conv": _DYNAMIC,
    "torch.ao.nn.quantized.dynamic.modules.linear": _DYNAMIC,
    "torch.ao.nn.quantized.dynamic.modules.rnn": (*_DYNAMIC, _NN + "recurrent"),
    "torch.ao.nn.quantized.reference": _REFERENCE,
    "torch.ao.nn.quantized.reference.modules": _REFERENCE,
    "torch.ao.nn.quantized.reference.modules.conv": _REFERENCE,
    "torch.ao.nn.quantized.reference.modules.linear": _REFERENCE,
    "torch.ao.nn.quantized.reference.modules.rnn": _REFERENCE,
    "torch.ao.nn.quantized.reference.modules.sparse": _REFERENCE,
    "torch.ao.nn.quantized.reference.modules.utils": (*_REFERENCE, _NN + "modes.reference"),
}

# Older names of the same modules: prefix -> prefix.
LEGACY: dict[str, str] = {
    "torch.quantization": "torch.ao.quantization",
    "torch.nn.quantized._reference": "torch.ao.nn.quantized.reference",
    "torch.nn.quantized": "torch.ao.nn.quantized",
    "torch.nn.intrinsic": "torch.ao.nn.intrinsic",
    "torch.nn.qat": "torch.ao.nn.qat",
    "torch.nn.quantizable": "torch.ao.nn.quantizable",
}

# torch.ao's private names that are called otherwise here.
RENAMED: dict[str, str] = {
    "_FusedModule": "quantization.markers:FusedModule",
    "_add_observer_": "quantization.workflows.ptq:add_observer_",
    "_assert_and_get_unique_device": "quantization.engine.tree:single_device",
    "_assert_valid_qconfig": "quantization.qconfig:assert_valid_qconfig",
    "_check_is_script_module": "quantization.torchscript.checks:require_script_module",
    "_check_forward_method": "quantization.torchscript.checks:require_forward",
    "_convert": "quantization.workflows.ptq:convert_modules",
    "_convert_jit": "quantization.torchscript.graph:convert",
    "_convert_ondevice_dynamic_jit": "quantization.torchscript.ondevice:convert_ondevice_dynamic_jit",
    "_convert_ondevice_jit": "quantization.torchscript.ondevice:convert_ondevice_jit",
    "_get_unique_devices_": "quantization.engine.tree:devices_of",
    "_observer_forward_hook": "quantization.engine.observe:observer_forward_hook",
    "_observer_forward_pre_hook": "quantization.engine.observe:observer_forward_pre_hook",
    "_prepare_jit": "quantization.torchscript.graph:prepare",
    "_prepare_ondevice_dynamic_jit": "quantization.torchscript.ondevice:prepare_ondevice_dynamic_jit",
    "_prepare_ondevice_jit": "quantization.torchscript.ondevice:prepare_ondevice_jit",
    "_quantize_jit": "quantization.torchscript.graph:quantize",
    "_quantize_ondevice_dynamic_jit": "quantization.torchscript.ondevice:quantize_ondevice_dynamic_jit",
    "_quantize_ondevice_dynamic_jit_impl": "quantization.torchscript.ondevice:quantize_ondevice_dynamic_jit",
    "_register_activation_post_process_hook": "quantization.engine.observe:register_observer_hook",
    "_remove_activation_post_process": "quantization.engine.observe:drop_observer",
    "_remove_qconfig": "quantization.workflows.ptq:remove_qconfig_",
    "has_no_children_ignoring_parametrizations": "quantization.engine.tree:is_leaf",
}
