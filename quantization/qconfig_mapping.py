"""QConfigMapping: which qconfig for which modules and operators, with the defaults of each engine.

Graph-mode tools and `get_default_qconfig_dict` use it; eager mode reads `module.qconfig` attributes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from mappings.observation import FIXED_RANGES
from mappings.resolve import find
from observers import (
    FixedQParamsFakeQuantize,
    default_fixed_qparams_range_0to1_observer,
    default_fixed_qparams_range_neg1to1_observer,
    default_placeholder_observer,
    default_weight_fake_quant,
    default_weight_observer,
)
from quantization.errors import InvalidRequest
from quantization.qconfig import (
    QConfig,
    QConfigAny,
    default_engine,
    default_quint8_weight_qconfig,
    default_reuse_input_qconfig,
    default_symmetric_qnnpack_qat_qconfig,
    default_symmetric_qnnpack_qconfig,
    get_default_qat_qconfig,
    get_default_qconfig,
)

_GLOBAL_DICT_KEY = ""
_OBJECT_TYPE_DICT_KEY = "object_type"
_MODULE_NAME_REGEX_DICT_KEY = "module_name_regex"
_MODULE_NAME_DICT_KEY = "module_name"
_MODULE_NAME_OBJECT_TYPE_ORDER_DICT_KEY = "module_name_object_type_order"

# The attributes of QConfigMapping, from the least to the most specific.
_QCONFIG_STYLE_ORDER: list[str] = [
    "global_qconfig",
    "object_type_qconfigs",
    "module_name_regex_qconfigs",
    "module_name_qconfigs",
    "module_name_object_type_order_qconfigs",
]


class QConfigMapping:
    """Qconfigs for a whole model, by operator type and by module name; the more specific setting wins.

    In ascending order: the global one, by type, by regular expression, by name, by name, type and position.
    Every setter returns the mapping itself.

    >>> from quantization.qconfig import default_qconfig
    >>> mapping = QConfigMapping().set_global(default_qconfig).set_module_name("head", None)
    >>> mapping.to_dict()["module_name"]
    [('head', None)]
    """

    def __init__(self) -> None:
        self.global_qconfig: QConfigAny = None
        self.object_type_qconfigs: OrderedDict[Callable[..., Any] | str, QConfigAny] = OrderedDict()
        self.module_name_regex_qconfigs: OrderedDict[str, QConfigAny] = OrderedDict()
        self.module_name_qconfigs: OrderedDict[str, QConfigAny] = OrderedDict()
        self.module_name_object_type_order_qconfigs: OrderedDict[
            tuple[str, Callable[..., Any], int], QConfigAny
        ] = OrderedDict()

    def set_global(self, global_qconfig: QConfigAny) -> QConfigMapping:
        """Set the qconfig of everything that nothing else applies to."""
        self.global_qconfig = global_qconfig
        return self

    def set_object_type(self, object_type: Callable[..., Any] | str, qconfig: QConfigAny) -> QConfigMapping:
        """Set the qconfig of a module type, a function, or a tensor method by name."""
        self.object_type_qconfigs[object_type] = qconfig
        return self

    def set_module_name_regex(self, module_name_regex: str, qconfig: QConfigAny) -> QConfigMapping:
        """Set the qconfig of modules whose name matches; of several expressions the first set wins."""
        self.module_name_regex_qconfigs[module_name_regex] = qconfig
        return self

    def set_module_name(self, module_name: str, qconfig: QConfigAny) -> QConfigMapping:
        """Set the qconfig of the module with a dotted name."""
        self.module_name_qconfigs[module_name] = qconfig
        return self

    def set_module_name_object_type_order(
        self, module_name: str, object_type: Callable[..., Any], index: int, qconfig: QConfigAny
    ) -> QConfigMapping:
        """Set the qconfig of the `index`-th call of `object_type` inside the module with a dotted name."""
        self.module_name_object_type_order_qconfigs[(module_name, object_type, index)] = qconfig
        return self

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for style in _QCONFIG_STYLE_ORDER:
            value = getattr(self, style)
            lines.append(f" {style}")
            if isinstance(value, OrderedDict) and value:
                lines += [f"  {key}: {qconfig}" for key, qconfig in value.items()]
            else:
                lines.append(f"  {value}")
        return "\n".join([*lines, ")"])

    def to_dict(self) -> dict[str, Any]:
        """The mapping as a dictionary of plain lists.

        Keys: '' (the global qconfig), 'object_type', 'module_name_regex', 'module_name' (lists of key and
        qconfig) and 'module_name_object_type_order' (a list of name, type, index and qconfig).
        """
        return {
            _GLOBAL_DICT_KEY: self.global_qconfig,
            _OBJECT_TYPE_DICT_KEY: list(self.object_type_qconfigs.items()),
            _MODULE_NAME_REGEX_DICT_KEY: list(self.module_name_regex_qconfigs.items()),
            _MODULE_NAME_DICT_KEY: list(self.module_name_qconfigs.items()),
            _MODULE_NAME_OBJECT_TYPE_ORDER_DICT_KEY: [
                (*key, qconfig) for key, qconfig in self.module_name_object_type_order_qconfigs.items()
            ],
        }

    @classmethod
    def from_dict(cls, qconfig_dict: Mapping[str, Any]) -> QConfigMapping:
        """The mapping that `to_dict` wrote; absent keys are empty, other keys are ignored.

        >>> QConfigMapping.from_dict({"module_name": [("head", None)]}).module_name_qconfigs
        OrderedDict([('head', None)])
        """
        if not isinstance(qconfig_dict, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidRequest(f"expected a dict as to_dict() writes it, got {qconfig_dict!r}")
        mapping = cls().set_global(qconfig_dict.get(_GLOBAL_DICT_KEY))
        setters: dict[str, tuple[Callable[..., Any], int]] = {
            _OBJECT_TYPE_DICT_KEY: (mapping.set_object_type, 2),
            _MODULE_NAME_REGEX_DICT_KEY: (mapping.set_module_name_regex, 2),
            _MODULE_NAME_DICT_KEY: (mapping.set_module_name, 2),
            _MODULE_NAME_OBJECT_TYPE_ORDER_DICT_KEY: (mapping.set_module_name_object_type_order, 4),
        }
        for key, (setter, length) in setters.items():
            for entry in qconfig_dict.get(key, ()):
                if not isinstance(entry, (tuple, list)) or len(entry) != length:
                    raise InvalidRequest(
                        f"{key!r} holds {entry!r}; expected a list of tuples of {length}, the qconfig last"
                    )
                setter(*entry)
        return mapping


_OBSERVER_OF_RANGE = {
    (0.0, 1.0): default_fixed_qparams_range_0to1_observer,
    (-1.0, 1.0): default_fixed_qparams_range_neg1to1_observer,
}
_FIXED_QPARAMS_OP_TO_OBSERVER: dict[Callable[..., Any] | str, Any] = {
    (find(name) if ":" in name else name): _OBSERVER_OF_RANGE[bounds] for name, bounds in FIXED_RANGES.items()
}
_CONV_TRANSPOSE = (
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.functional.conv_transpose1d,
    nn.functional.conv_transpose2d,
    nn.functional.conv_transpose3d,
)


def get_default_qconfig_mapping(backend: str | None = None, version: int = 0) -> QConfigMapping:
    """The default mapping for post-training static quantization on an engine; None: `default_engine()`.

    >>> from torch import nn
    >>> get_default_qconfig_mapping("x86").object_type_qconfigs[nn.ConvTranspose2d].weight().qscheme
    torch.per_tensor_symmetric
    """
    return _get_default_qconfig_mapping(False, backend, version)


def get_default_qat_qconfig_mapping(backend: str | None = None, version: int = 1) -> QConfigMapping:
    """The default mapping for quantization-aware training on an engine; None: `default_engine()`.

    >>> type(get_default_qat_qconfig_mapping("x86").global_qconfig.activation()).__name__
    'FusedMovingAvgObsFakeQuantize'
    """
    return _get_default_qconfig_mapping(True, backend, version)


def get_default_qconfig_dict(backend: str | None = None, version: int = 0) -> dict[str, Any]:
    """`get_default_qconfig_mapping` as a dictionary.

    >>> sorted(get_default_qconfig_dict("x86"))[:2]
    ['', 'module_name']
    """
    return get_default_qconfig_mapping(backend, version).to_dict()


def get_default_qat_qconfig_dict(backend: str | None = None, version: int = 1) -> dict[str, Any]:
    """`get_default_qat_qconfig_mapping` as a dictionary.

    >>> sorted(get_default_qat_qconfig_dict("x86"))[:2]
    ['', 'module_name']
    """
    return get_default_qat_qconfig_mapping(backend, version).to_dict()


def _get_default_qconfig_mapping(is_qat: bool, backend: str | None, version: int) -> QConfigMapping:
    """The default qconfig of an engine, and the operators that need another one."""
    backend = default_engine() if backend is None else backend
    make = get_default_qat_qconfig if is_qat else get_default_qconfig
    qconfig = make(backend, version)
    per_tensor = default_weight_fake_quant if is_qat else default_weight_observer
    # fbgemm's kernels take per-channel weights in every convolution but the transposed ones.
    transposed_weight = per_tensor if backend in ("fbgemm", "x86") else qconfig.weight
    mapping = QConfigMapping().set_global(qconfig)
    mapping.set_object_type("reshape", default_reuse_input_qconfig)
    for operator in _CONV_TRANSPOSE:
        mapping.set_object_type(operator, QConfig(qconfig.activation, transposed_weight))
    for operator in (nn.functional.layer_norm, nn.LayerNorm):
        mapping.set_object_type(operator, QConfig(qconfig.activation, default_placeholder_observer))
    mapping.set_object_type(nn.PReLU, default_quint8_weight_qconfig)
    for operator, observer in _FIXED_QPARAMS_OP_TO_OBSERVER.items():
        activation = FixedQParamsFakeQuantize.with_args(observer=observer) if is_qat else observer
        mapping.set_object_type(operator, QConfig(activation, per_tensor))
    return mapping


def _get_default_qconfig_mapping_with_default_qconfig(
    is_qat: bool, backend: str, default_qconfig: QConfig
) -> QConfigMapping:
    """The engine's mapping with `default_qconfig` everywhere but where the output range is fixed."""
    mapping = get_default_qat_qconfig_mapping(backend) if is_qat else get_default_qconfig_mapping(backend)
    mapping.set_global(default_qconfig)
    for operator in mapping.object_type_qconfigs:
        if operator not in _FIXED_QPARAMS_OP_TO_OBSERVER:
            mapping.set_object_type(operator, default_qconfig)
    return mapping


def _get_symmetric_qnnpack_qconfig_mapping() -> QConfigMapping:
    """For QNNPACK's symmetric kernels: signed activations, weights within -127..127."""
    return _get_default_qconfig_mapping_with_default_qconfig(
        False, "qnnpack", default_symmetric_qnnpack_qconfig
    )


def _get_symmetric_qnnpack_qat_qconfig_mapping() -> QConfigMapping:
    """The same for quantization-aware training."""
    return _get_default_qconfig_mapping_with_default_qconfig(
        True, "qnnpack", default_symmetric_qnnpack_qat_qconfig
    )
