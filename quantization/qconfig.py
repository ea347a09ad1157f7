"""QConfig, the default qconfigs, and which engine gets which.

A qconfig is a recipe: two factories, called once per module that is quantized. The defaults below differ in
how activations are observed (min/max, histogram, moving average), in the weights (per tensor or per channel),
and in whether quantization is simulated while training (the `qat` ones).
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import nn

from observers import (
    FakeQuantize as FakeQuantize,
    FakeQuantizeBase,
    FusedMovingAvgObsFakeQuantize,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    NoopObserver,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
    ReuseInputObserver,
    default_debug_observer,
    default_dynamic_fake_quant,
    default_dynamic_quant_observer,
    default_embedding_fake_quant,
    default_embedding_fake_quant_4bit,
    default_fake_quant,
    default_float_qparams_observer,
    default_float_qparams_observer_4bit,
    default_fused_act_fake_quant,
    default_fused_per_channel_wt_fake_quant as default_fused_per_channel_wt_fake_quant,
    default_fused_wt_fake_quant,
    default_observer,
    default_per_channel_weight_fake_quant as default_per_channel_weight_fake_quant,
    default_per_channel_weight_observer,
    default_placeholder_observer,
    default_reuse_input_observer,
    default_weight_fake_quant,
    default_weight_observer,
    fused_per_channel_wt_fake_quant_range_neg_127_to_127,
    fused_wt_fake_quant_range_neg_127_to_127,
    per_channel_weight_observer_range_neg_127_to_127,
    weight_observer_range_neg_127_to_127,
)
from observers.factory import factories_equal
from quantization.errors import FamiliarError, InvalidRequest, QuantizationWarning
from quantization.qconfig_binding import (
    _DeviceOf as _DeviceOf,  # pickles of prepared models name it here
    on_device_of,
    sample,
)
from quantization.qconfig_engines import (
    ENGINES,
    default_engine as default_engine,
    engine_named,
    has_vnni,
    usable_engines as usable_engines,
)


class _Factories(NamedTuple):
    activation: Any
    weight: Any


class QConfig(_Factories):
    """How to quantize a module: one factory for the observer of its output, one for that of its weight.

    A factory is an observer or fake-quantizer class, or `SomeObserver.with_args(...)`; None makes none.

    >>> from observers import MinMaxObserver
    >>> qconfig = QConfig(
    ...     activation=MinMaxObserver,
    ...     weight=MinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric),
    ... )
    >>> qconfig.weight().dtype
    torch.qint8
    """

    __slots__ = ()

    def __new__(cls, activation: Any, weight: Any) -> QConfig:
        _check_factory("QConfig", "activation", activation)
        _check_factory("QConfig", "weight", weight)
        return super().__new__(cls, activation, weight)


class QConfigDynamic(_Factories):
    """`QConfig` by the name it had for dynamic quantization; both factories default to `torch.nn.Identity`.

    >>> QConfigDynamic(weight=default_weight_observer).activation
    <class 'torch.nn.modules.linear.Identity'>
    """

    __slots__ = ()

    def __new__(cls, activation: Any = nn.Identity, weight: Any = nn.Identity) -> QConfigDynamic:
        _check_factory("QConfigDynamic", "activation", activation)
        _check_factory("QConfigDynamic", "weight", weight)
        return super().__new__(cls, activation, weight)


QConfigAny = QConfig | None


def _check_factory(owner: str, field: str, factory: Any) -> None:
    """Refuse a module, which is no factory; scripted observers pass, script-module PTQ copies them."""
    if isinstance(factory, nn.Module) and not isinstance(factory, torch.jit.ScriptModule):
        name = type(factory).__name__
        raise InvalidRequest(
            f"{owner} received observer instance, please pass observer class instead: {field} is a {name} "
            f"object, which all modules would share. Pass a factory: {name} itself, or {name}.with_args(...) "
            "to set its arguments"
        )


# Post-training, static.
default_qconfig = QConfig(activation=default_observer, weight=default_weight_observer)
default_debug_qconfig = QConfig(activation=default_debug_observer, weight=default_weight_observer)
default_per_channel_qconfig = QConfig(activation=default_observer, weight=default_per_channel_weight_observer)
default_quint8_weight_qconfig = QConfig(activation=HistogramObserver, weight=MinMaxObserver)
default_reuse_input_qconfig = QConfig(activation=default_reuse_input_observer, weight=NoopObserver)
float16_static_qconfig = QConfig(
    activation=PlaceholderObserver.with_args(dtype=torch.float16),
    weight=PlaceholderObserver.with_args(dtype=torch.float16),
)

# Post-training, dynamic and weight-only.
default_dynamic_qconfig = QConfig(activation=default_dynamic_quant_observer, weight=default_weight_observer)
per_channel_dynamic_qconfig = QConfig(
    activation=default_dynamic_quant_observer, weight=default_per_channel_weight_observer
)
full_range_dynamic_qconfig = QConfig(
    activation=PlaceholderObserver.with_args(
        dtype=torch.quint8, quant_min=0, quant_max=255, is_dynamic=True, reduce_range=False
    ),
    weight=default_weight_observer,
)
per_row_dynamic_qconfig = QConfig(
    activation=PlaceholderObserver.with_args(
        dtype=torch.quint8,
        quant_min=0,
        quant_max=255,
        qscheme=torch.per_channel_affine,
        is_dynamic=True,
        reduce_range=False,
    ),
    weight=default_per_channel_weight_observer,
)
float16_dynamic_qconfig = QConfig(
    activation=PlaceholderObserver.with_args(dtype=torch.float16, is_dynamic=True),
    weight=PlaceholderObserver.with_args(dtype=torch.float16),
)
float_qparams_weight_only_qconfig = QConfig(
    activation=default_placeholder_observer, weight=default_float_qparams_observer
)
float_qparams_weight_only_qconfig_4bit = QConfig(
    activation=default_placeholder_observer, weight=default_float_qparams_observer_4bit
)

# Quantization-aware training.
default_qat_qconfig = QConfig(activation=default_fake_quant, weight=default_weight_fake_quant)
default_qat_qconfig_v2 = QConfig(activation=default_fused_act_fake_quant, weight=default_fused_wt_fake_quant)
default_dynamic_qat_qconfig = QConfig(activation=default_dynamic_fake_quant, weight=default_weight_fake_quant)
default_weight_only_qconfig = QConfig(activation=nn.Identity, weight=default_weight_fake_quant)
default_activation_only_qconfig = QConfig(activation=default_fake_quant, weight=nn.Identity)
default_embedding_qat_qconfig = QConfig(
    activation=NoopObserver.with_args(dtype=torch.float32), weight=default_embedding_fake_quant
)
default_embedding_qat_qconfig_4bit = QConfig(
    activation=NoopObserver.with_args(dtype=torch.float32), weight=default_embedding_fake_quant_4bit
)

# Signed activations and weights within -127..127, which QNNPACK's and XNNPACK's symmetric kernels need.
_SMALLEST_SCALE = 2**-12
_symmetric_activation = HistogramObserver.with_args(
    dtype=torch.qint8, reduce_range=False, eps=_SMALLEST_SCALE
)
_symmetric_fused_activation = FusedMovingAvgObsFakeQuantize.with_args(
    observer=MovingAverageMinMaxObserver,
    quant_min=-128,
    quant_max=127,
    dtype=torch.qint8,
    reduce_range=False,
    eps=_SMALLEST_SCALE,
)
default_symmetric_qnnpack_qconfig = QConfig(
    activation=_symmetric_activation, weight=weight_observer_range_neg_127_to_127
)
default_per_channel_symmetric_qnnpack_qconfig = QConfig(
    activation=_symmetric_activation, weight=per_channel_weight_observer_range_neg_127_to_127
)
default_symmetric_qnnpack_qat_qconfig = QConfig(
    activation=_symmetric_fused_activation, weight=fused_wt_fake_quant_range_neg_127_to_127
)
default_per_channel_symmetric_qnnpack_qat_qconfig = QConfig(
    activation=_symmetric_fused_activation, weight=fused_per_channel_wt_fake_quant_range_neg_127_to_127
)

_default_fp32_placeholder_qconfig = QConfig(
    activation=PlaceholderObserver.with_args(dtype=torch.float32),
    weight=PlaceholderObserver.with_args(dtype=torch.float32),
)
_default_quint8_placeholder_qconfig = QConfig(
    activation=PlaceholderObserver.with_args(dtype=torch.quint8), weight=None
)


_STATIC = {name: QConfig(*factories.static) for name, factories in ENGINES.items()}
_TRAINING = {name: [QConfig(*pair) for pair in factories.qat] for name, factories in ENGINES.items()}


def get_default_qconfig(backend: str | None = None, version: int = 0) -> QConfig:
    """The qconfig for post-training static quantization on an engine.

    Args:
        backend: 'x86', 'fbgemm', 'onednn' or 'qnnpack'; None takes `default_engine()`.
        version: 0 is the only one.

    Raises:
        InvalidRequest: an unknown engine or version.

    >>> get_default_qconfig("qnnpack").weight().qscheme
    torch.per_tensor_symmetric
    """
    name = engine_named(backend)
    if version != 0:
        raise InvalidRequest(
            f"Version number: {version} in get_default_qconfig is not supported. Version number must be 0"
        )
    if name == "onednn" and not has_vnni():
        warnings.warn(
            "the default qconfig of onednn uses all eight bits of activations, and this CPU has no VNNI "
            "instructions: sums may overflow and cost accuracy; get_default_qconfig('x86') leaves a bit free",
            QuantizationWarning,
            stacklevel=2,
        )
    return _STATIC[name]


def get_default_qat_qconfig(backend: str | None = None, version: int = 1) -> QConfig:
    """The qconfig for quantization-aware training on an engine.

    Args:
        backend: 'x86', 'fbgemm', 'onednn' or 'qnnpack'; None takes `default_engine()`.
        version: 1 observes and fake-quantizes in one fused operator, 0 in two separate steps.

    Raises:
        InvalidRequest: an unknown engine or version.

    >>> type(get_default_qat_qconfig("x86").activation()).__name__
    'FusedMovingAvgObsFakeQuantize'
    """
    name = engine_named(backend)
    if version not in (0, 1):
        raise InvalidRequest(
            f"Version number: {version} in get_default_qat_qconfig is not supported. "
            "Version number must be 0 or 1"
        )
    return _TRAINING[name][version]


def qconfig_equals(q1: QConfigAny, q2: QConfigAny) -> bool:
    """Whether two qconfigs make equal observers; the device their observers are bound to does not count.

    >>> qconfig_equals(default_qconfig, default_qconfig), qconfig_equals(default_qconfig, None)
    (True, False)
    """
    if q1 is None or q2 is None:
        return q1 is q2
    return factories_equal(q1.activation, q2.activation) and factories_equal(q1.weight, q2.weight)


def assert_valid_qconfig(qconfig: QConfigAny, mod: nn.Module) -> None:
    """Raise `InvalidRequest` if the module cannot be quantized as the qconfig says.

    >>> assert_valid_qconfig(default_qconfig, nn.ConvTranspose2d(1, 1, 1))
    """
    if qconfig is None or qconfig.weight is None or not isinstance(mod, _CONV_TRANSPOSE):
        return
    weight_observer = sample(qconfig.weight)
    if isinstance(weight_observer, (PerChannelMinMaxObserver, MovingAveragePerChannelMinMaxObserver)):
        raise FamiliarError(
            "Per channel weight observer is not supported yet for ConvTranspose{n}d.",  # sic, braces and all
            f"{type(mod).__name__} needs a per-tensor weight observer: set its own qconfig, "
            "module.qconfig = QConfig(activation=qconfig.activation, weight=default_weight_observer)",
        )


_CONV_TRANSPOSE = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def bind_to_device(qconfig: QConfigAny, module: nn.Module | None) -> QConfigAny:
    """The qconfig with factories that make their observers on the device of `module`.

    Factories that take no `factory_kwargs` stay as they are.

    >>> bound = bind_to_device(default_qconfig, nn.Linear(2, 2))
    >>> bound == default_qconfig, qconfig_equals(bound, default_qconfig)
    (False, True)
    """
    if qconfig is None or module is None:
        return qconfig
    return QConfig(on_device_of(module, qconfig.activation), on_device_of(module, qconfig.weight))


def _activation_is_memoryless(qconfig: QConfig) -> bool:
    """Whether the activation observer forgets earlier batches, as dynamic QAT needs."""
    observer = sample(qconfig.activation)
    if isinstance(observer, FakeQuantizeBase):
        observer = getattr(observer, "activation_post_process", observer)
    return getattr(observer, "averaging_constant", None) == 1


def _is_reuse_input_qconfig(qconfig: QConfigAny) -> bool:
    """Whether the output shall keep the quantization parameters of the input."""
    if qconfig is None:
        return False
    return isinstance(sample(qconfig.activation), ReuseInputObserver) and isinstance(
        sample(qconfig.weight), NoopObserver
    )


# Names of torch.ao that other code imports.
_assert_valid_qconfig = assert_valid_qconfig
_add_module_to_qconfig_obs_ctr = bind_to_device
_obs_or_fq_ctr_equals = factories_equal
_partial_wrapper_equals = factories_equal
