"""Which of our modules answers for which module of torch.ao. Pure data."""

from __future__ import annotations

_NN = "quantization.nn."
_COMPAT = "quantization.compat."
_WEIGHTS = (_COMPAT + "weights",)
_REFERENCE_WEIGHTS = (_COMPAT + "reference_weights",)
_STUBS = ("quantization.stubs",)
_OBSERVERS = ("observers", "observers.base", "observers.dtypes", "observers.state", "observers.factory")
_QUANTIZED = (_NN + "quantized", _NN + "functional_modules", _NN + "modes.static", *_WEIGHTS)
_DYNAMIC = (_NN + "dynamic", *_WEIGHTS)
_QAT = (_NN + "qat",)
_FUSED = (_NN + "fused",)
_REFERENCE = (_NN + "reference",)
_SPARSE = (_NN + "sparse", *_WEIGHTS)
_SPARSE_DYNAMIC = (_NN + "sparse_dynamic", *_WEIGHTS)
_QUANTIZABLE = (_NN + "quantizable",)
_WORKFLOWS = tuple("quantization.workflows." + name for name in ("ptq", "qat", "dynamic", "tables"))
_ENGINE = tuple("quantization.engine." + name for name in ("propagate", "swap", "observe", "tree"))
_FUSING = ("quantization.workflows.fusing", "quantization.workflows.fuser_methods")
_QCONFIG = tuple("quantization." + name for name in ("qconfig", "qconfig_engines", "qconfig_binding"))
_QUANT_TYPE = ("quantization.quant_type",)
_TORCHSCRIPT = tuple("quantization.torchscript." + name for name in ("graph", "ondevice", "checks"))

# torch.ao's module -> ours, in the order they are asked. A source that does not exist (yet) is passed over.
SOURCES: dict[str, tuple[str, ...]] = {
    "torch.ao": (),
    "torch.ao.quantization": ("quantization", "observers", *_WORKFLOWS, *_QCONFIG),
    "torch.ao.quantization._correct_bias": ("quantization.bias_correction",),
    "torch.ao.quantization._equalize": ("quantization.equalization",),
    "torch.ao.quantization.quantize": (*_WORKFLOWS, *_ENGINE, *_QCONFIG, *_STUBS, "observers"),
    "torch.ao.quantization.fuse_modules": _FUSING,
    "torch.ao.quantization.fuser_method_mappings": _FUSING,
    "torch.ao.quantization.observer": _OBSERVERS,
    "torch.ao.quantization.fake_quantize": _OBSERVERS,
    "torch.ao.quantization._learnable_fake_quantize": ("observers",),
    "torch.ao.quantization.qconfig": (*_QCONFIG, *_OBSERVERS, "quantization.qconfig_mapping"),
    "torch.ao.quantization.qconfig_mapping": ("quantization.qconfig_mapping", *_QCONFIG, *_OBSERVERS),
    "torch.ao.quantization.quant_type": _QUANT_TYPE,
    "torch.ao.quantization.quantization_mappings": ("quantization.workflows.tables", *_STUBS),
    "torch.ao.quantization.quantize_jit": (*_TORCHSCRIPT, *_QUANT_TYPE, *_QCONFIG),
    "torch.ao.quantization.stubs": (*_STUBS, *_QCONFIG),
    "torch.ao.quantization.utils": (
        *_QUANT_TYPE,
        "quantization.qparams",
        _COMPAT + "paths",
        _COMPAT + "arguments",
        *_OBSERVERS,
        *_ENGINE,
    ),
    "torch.ao.ns": (),
    "torch.ao.ns._numeric_suite": ("quantization.numeric_suite",),
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
    "torch.ao.nn.quantizable": _QUANTIZABLE,
    "torch.ao.nn.quantizable.modules": _QUANTIZABLE,
    "torch.ao.nn.quantizable.modules.activation": _QUANTIZABLE,
    "torch.ao.nn.quantizable.modules.rnn": _QUANTIZABLE,
    "torch.ao.nn.quantized": _QUANTIZED,
    "torch.ao.nn.quantized.functional": (_NN + "functional", *_WEIGHTS),
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
    "torch.ao.nn.quantized.reference.modules.rnn": (*_REFERENCE, *_REFERENCE_WEIGHTS),
    "torch.ao.nn.quantized.reference.modules.sparse": _REFERENCE,
    "torch.ao.nn.quantized.reference.modules.utils": (
        *_REFERENCE,
        _NN + "modes.reference",
        *_REFERENCE_WEIGHTS,
    ),
    "torch.ao.nn.sparse": (),
    "torch.ao.nn.sparse.quantized": _SPARSE,
    "torch.ao.nn.sparse.quantized.linear": _SPARSE,
    "torch.ao.nn.sparse.quantized.utils": _SPARSE,
    "torch.ao.nn.sparse.quantized.dynamic": _SPARSE_DYNAMIC,
    "torch.ao.nn.sparse.quantized.dynamic.linear": _SPARSE_DYNAMIC,
}

# What torch's compiler imports for the operators that it registers; served only where torch.ao has it not.
DECOMPOSED: dict[str, tuple[str, ...]] = {
    "torch.ao.quantization.fx": (),
    "torch.ao.quantization.fx._decomposed": ("quantization.backends.decomposed",),
}

# Older names of the same modules: prefix -> prefix.
LEGACY: dict[str, str] = {
    "torch.quantization._numeric_suite": "torch.ao.ns._numeric_suite",
    "torch.quantization": "torch.ao.quantization",
    "torch.nn.quantized._reference": "torch.ao.nn.quantized.reference",
    "torch.nn.quantized": "torch.ao.nn.quantized",
    "torch.nn.intrinsic": "torch.ao.nn.intrinsic",
    "torch.nn.qat": "torch.ao.nn.qat",
    "torch.nn.quantizable": "torch.ao.nn.quantizable",
}

# torch.ao's names that are called otherwise here; "module:name" is for one module, a name for all of them.
RENAMED: dict[str, str] = {
    # Programs patch `type` to let subclasses pass; here it is this function that tells the type.
    "torch.ao.nn.quantized.modules.linear:type": _NN + "modes.weighted:type_before_parametrizations",
    "torch.ao.nn.quantized.modules.conv:type": _NN + "modes.weighted:type_before_parametrizations",
    "torch.ao.nn.qat.modules.linear:type": _NN + "modes.qat:type_before_parametrizations",
    "torch.ao.nn.qat.modules.conv:type": _NN + "modes.qat:type_before_parametrizations",
    "torch.ao.nn.qat.modules.conv:_ConvNd": _NN + "modes.qat:QatConv",
    "torch.ao.nn.quantized.reference.modules.rnn:RNNBase": _NN + "modes.reference_recurrent:LayerReference",
    "torch.ao.nn.quantized.reference.modules.rnn:RNNCellBase": _NN
    + "modes.reference_recurrent:CellReference",
    "MatchAllNode": "quantization.workflows.fuser_methods:MatchAllNode",
    "_ConvBnNd": _NN + "modes.qat_batchnorm:QatConvBn",
    "_FusedModule": "quantization.markers:FusedModule",
    "_add_observer_": "quantization.workflows.ptq:add_observer_",
    "_assert_and_get_unique_device": "quantization.engine.tree:single_device",
    "_assert_valid_qconfig": "quantization.qconfig:assert_valid_qconfig",
    "_check_is_script_module": "quantization.torchscript.checks:require_script_module",
    "_check_forward_method": "quantization.torchscript.checks:require_forward",
    "_convert": "quantization.workflows.conversion:convert_modules",
    "_convert_jit": "quantization.torchscript.graph:convert",
    "_convert_ondevice_dynamic_jit": "quantization.torchscript.ondevice:convert_ondevice_dynamic_jit",
    "_convert_ondevice_jit": "quantization.torchscript.ondevice:convert_ondevice_jit",
    "_get_observer_dict": _COMPAT + "paths:observers_by_name",
    "_get_path_of_module": _COMPAT + "paths:path_of_module",
    "_get_unique_devices_": "quantization.engine.tree:devices_of",
    "_observer_forward_hook": "quantization.engine.observe:observer_forward_hook",
    "_observer_forward_pre_hook": "quantization.engine.observe:observer_forward_pre_hook",
    "_parent_name": _COMPAT + "paths:parent_name",
    "_prepare_jit": "quantization.torchscript.graph:prepare",
    "_prepare_ondevice_dynamic_jit": "quantization.torchscript.ondevice:prepare_ondevice_dynamic_jit",
    "_prepare_ondevice_jit": "quantization.torchscript.ondevice:prepare_ondevice_jit",
    "_quantize_jit": "quantization.torchscript.graph:quantize",
    "_quantize_ondevice_dynamic_jit": "quantization.torchscript.ondevice:quantize_ondevice_dynamic_jit",
    "_quantize_ondevice_dynamic_jit_impl": "quantization.torchscript.ondevice:quantize_ondevice_dynamic_jit",
    "_register_activation_post_process_hook": "quantization.engine.observe:register_observer_hook",
    "_remove_activation_post_process": "quantization.engine.observe:drop_observer",
    "_is_activation_post_process": "observers:_is_activation_post_process",
    "is_activation_post_process": "observers:_is_activation_post_process",
    "_remove_qconfig": "quantization.workflows.ptq:remove_qconfig_",
    "get_combined_dict": _COMPAT + "paths:get_combined_dict",
    "has_no_children_ignoring_parametrizations": "quantization.engine.tree:is_leaf",
}
