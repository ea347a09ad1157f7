"""QConfig, the default qconfigs, and which engine gets which.

A qconfig is a recipe: two factories, called once per module that is quantized. The defaults below differ in
how activations are observed (min/max, histogram, moving average), in the weights (per tensor or per channel),
and in whether quantization is simulated while training (the `qat` ones).
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from observers import (
    FakeQuantize,
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
    default_fused_per_channel_wt_fake_quant,
    default_fused_wt_fake_quant,
    default_observer,
    default_per_channel_weight_fake_quant,
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


@dataclass(frozen=True)
class _EngineDefaults:
    """What suits an engine's kernels: a qconfig for calibration, and one per version for training."""

    static: QConfig
    qat: tuple[QConfig, QConfig]


def _simulated(fake_quantize: type[FakeQuantize], **keywords: Any) -> Any:
    """A fake quantizer of unsigned 8-bit activations."""
    return fake_quantize.with_args(
        observer=MovingAverageMinMaxObserver, quant_min=0, quant_max=255, **keywords
    )


# x86 kernels without VNNI add pairs of products in 16 bits, hence seven-bit activations (reduce_range).
_X86 = _EngineDefaults(
    static=QConfig(HistogramObserver.with_args(reduce_range=True), default_per_channel_weight_observer),
    qat=(
        QConfig(_simulated(FakeQuantize, reduce_range=True), default_per_channel_weight_fake_quant),
        QConfig(
            _simulated(FusedMovingAvgObsFakeQuantize, reduce_range=True),
            default_fused_per_channel_wt_fake_quant,
        ),
    ),
)
_ENGINES: dict[str, _EngineDefaults] = {
    "fbgemm": _X86,
    "x86": _X86,
    "qnnpack": _EngineDefaults(
        static=QConfig(HistogramObserver.with_args(reduce_range=False), default_weight_observer),
        qat=(
            QConfig(_simulated(FakeQuantize, reduce_range=False), default_weight_fake_quant),
            QConfig(
                _simulated(FusedMovingAvgObsFakeQuantize, reduce_range=False), default_fused_wt_fake_quant
            ),
        ),
    ),
    "onednn": _EngineDefaults(
        static=QConfig(HistogramObserver.with_args(reduce_range=False), default_per_channel_weight_observer),
        qat=(
            QConfig(_simulated(FakeQuantize), default_per_channel_weight_fake_quant),
            QConfig(_simulated(FusedMovingAvgObsFakeQuantize), default_fused_per_channel_wt_fake_quant),
        ),
    ),
}
# Best first, for a machine whose current engine is unusable.
_PREFERENCE = ("x86", "fbgemm", "onednn", "qnnpack")


def usable_engines() -> list[str]:
    """The quantized engines of this machine's torch, best first.

    >>> set(usable_engines()) <= {"x86", "fbgemm", "onednn", "qnnpack"}
    True
    """
    supported = torch.backends.quantized.supported_engines
    return [name for name in _PREFERENCE if name in supported]


def default_engine() -> str:
    """The engine that quantized models run on here: torch's current one, else the best that this machine has.

    A machine without any gets 'x86', because a qconfig may be made on another machine than the one it is for.

    >>> default_engine() in ("x86", "fbgemm", "onednn", "qnnpack")
    True
    """
    usable = usable_engines()
    current = torch.backends.quantized.engine
    return current if current in usable else next(iter(usable), "x86")


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
    name = _engine_name(backend)
    if version != 0:
        raise InvalidRequest(
            f"Version number: {version} in get_default_qconfig is not supported. Version number must be 0"
        )
    if name == "onednn" and not _has_vnni():
        warnings.warn(
            "the default qconfig of onednn uses all eight bits of activations, and this CPU has no VNNI "
            "instructions: sums may overflow and cost accuracy; get_default_qconfig('x86') leaves a bit free",
            QuantizationWarning,
            stacklevel=2,
        )
    return _ENGINES[name].static


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
    name = _engine_name(backend)
    if version not in (0, 1):
        raise InvalidRequest(
            f"Version number: {version} in get_default_qat_qconfig is not supported. "
            "Version number must be 0 or 1"
        )
    return _ENGINES[name].qat[version]


def _engine_name(backend: str | None) -> str:
    """The engine meant, with a warning if this machine cannot run it."""
    if backend is None:
        return default_engine()
    usable = usable_engines()
    here = f"this machine has {usable or 'none of them'}"
    if backend not in _ENGINES:
        raise InvalidRequest(
            f"backend: {backend} not supported. backend must be one of {list(_ENGINES)}; {here}"
        )
    if backend not in usable:
        warnings.warn(
            f"a qconfig for {backend} was made, but {here}: models converted here will not run on {backend}",
            QuantizationWarning,
            stacklevel=3,
        )
    return backend


def _has_vnni() -> bool:
    """Whether the CPU has the instructions; True on versions of torch that cannot tell."""
    return bool(getattr(torch.cpu, "_is_vnni_supported", lambda: True)())


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
    weight_observer = _sample(qconfig.weight)
    if isinstance(weight_observer, (PerChannelMinMaxObserver, MovingAveragePerChannelMinMaxObserver)):
        raise FamiliarError(
            "Per channel weight observer is not supported yet for ConvTranspose{n}d.",  # sic, braces and all
            f"{type(mod).__name__} needs a per-tensor weight observer: set its own qconfig, "
            "module.qconfig = QConfig(activation=qconfig.activation, weight=default_weight_observer)",
        )


_CONV_TRANSPOSE = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _sample(factory: Any) -> Any:
    """An observer made only to be looked at; its warnings are for the one that will be used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return factory()


class _DeviceOf:
    """Computes the `factory_kwargs` of an observer: the device its module is on when the observer is made.

    The module is referred to weakly, so that a qconfig keeps no replaced module alive; a deep copy or an
    unpickled copy of the module has a qconfig that refers to the copy.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module: Callable[[], nn.Module | None] = weakref.ref(module)

    def __call__(self) -> dict[str, torch.device] | None:
        module = self._module()
        if module is None:
            return None
        devices = {tensor.device for tensor in (*module.parameters(), *module.buffers())}
        real = devices - {torch.device("meta")} or devices
        return {"device": real.pop()} if len(real) == 1 else None

    def __deepcopy__(self, memo: dict[int, Any]) -> _DeviceOf:
        module = self._module()
        return self if module is None else _DeviceOf(memo.get(id(module), module))

    def __getstate__(self) -> tuple[nn.Module | None]:
        return (self._module(),)

    def __setstate__(self, state: tuple[nn.Module | None]) -> None:
        (module,) = state
        self._module = _nothing if module is None else weakref.ref(module)


def _nothing() -> None:
    """What a dead weak reference returns."""


def bind_to_device(qconfig: QConfigAny, module: nn.Module | None) -> QConfigAny:
    """The qconfig with factories that make their observers on the device of `module`.

    Factories that take no `factory_kwargs` stay as they are.

    >>> bound = bind_to_device(default_qconfig, nn.Linear(2, 2))
    >>> bound == default_qconfig, qconfig_equals(bound, default_qconfig)
    (False, True)
    """
    if qconfig is None or module is None:
        return qconfig

    def bound(factory: Any) -> Any:
        try:
            _sample(factory.with_args(factory_kwargs=None))
        except (AttributeError, TypeError):
            return factory
        return factory.with_callable_args(factory_kwargs=_DeviceOf(module))

    return QConfig(bound(qconfig.activation), bound(qconfig.weight))


def _activation_is_memoryless(qconfig: QConfig) -> bool:
    """Whether the activation observer forgets earlier batches, as dynamic QAT needs."""
    observer = _sample(qconfig.activation)
    if isinstance(observer, FakeQuantizeBase):
        observer = getattr(observer, "activation_post_process", observer)
    return getattr(observer, "averaging_constant", None) == 1


def _is_reuse_input_qconfig(qconfig: QConfigAny) -> bool:
    """Whether the output shall keep the quantization parameters of the input."""
    if qconfig is None:
        return False
    return isinstance(_sample(qconfig.activation), ReuseInputObserver) and isinstance(
        _sample(qconfig.weight), NoopObserver
    )


# Names of torch.ao that other code imports.
_assert_valid_qconfig = assert_valid_qconfig
_add_module_to_qconfig_obs_ctr = bind_to_device
_obs_or_fq_ctr_equals = factories_equal
_partial_wrapper_equals = factories_equal
