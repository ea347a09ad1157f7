"""What every layer with a packed weight shares: its class statement, `weight`, `bias`, how it is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations
from typing_extensions import Self

from quantization.backends.ops import PackedOps
from quantization.errors import InvalidRequest
from quantization.nn.calibrated import Calibrated, folded, own_bias, unwrapped
from quantization.nn.families.family import Family, Geometry, Sliver
from quantization.nn.placed import Placed
from quantization.nn.weight_view import ViewOf
from quantization.qparams import WeightQuantizer

ForwardBuilder = Callable[..., Callable[..., Tensor]]


class WeightedQuantizedModule(Placed):
    """Base of the quantized layers with a weight; a cell states its family, operators and float source.

    `class ConvReLU2d(Conv2d, ops=..., source=fused.ConvReLU2d)`: `family`, `ops`, `forward` and `source` are
    inherited where the statement leaves them out. `forward(ops)` builds the forward method; operators reach
    it through its closure, because TorchScript refuses them as attributes.
    """

    if TYPE_CHECKING:  # TorchScript would try to resolve annotations of instance attributes
        scale: float
        zero_point: int

    family: ClassVar[Family]
    ops: ClassVar[PackedOps]
    _FLOAT_MODULE: ClassVar[Any]
    _weight_dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.qint8,)
    _ONLY_READS = True
    __constants__ = ("_kind",)
    _kind: ClassVar[str]
    _build_forward: ClassVar[ForwardBuilder]
    _constructor: ClassVar[Any]

    def __init_subclass__(
        cls,
        *,
        family: Family | None = None,
        ops: PackedOps | None = None,
        forward: ForwardBuilder | None = None,
        source: type[nn.Module] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init_subclass__(**kwargs)
        if family is not None:
            cls.family = family
            first, *others = family.float_types
            cls._FLOAT_MODULE = family.float_types if others else first
        if source is not None:
            cls._FLOAT_MODULE = source
        if forward is not None:
            cls._build_forward = staticmethod(forward)
        if ops is not None:
            cls.ops = ops
            cls._constructor = cls.__init__
            cls._kind = cls.__name__
            cls._bind(ops)

    @classmethod
    def _bind(cls, ops: PackedOps) -> None:
        """Give the class the methods that capture operators."""
        cls.forward = cls._build_forward(ops)

    weight: Any = ViewOf("_read_weight", "_weight_facts", "The quantized weight: `module.weight()`.")
    bias: Any = ViewOf("_read_bias", "_bias_facts", "The float bias, or None: `module.bias()`.")

    def _weight_bias(self) -> Any:
        raise NotImplementedError

    def set_weight_bias(self, w: Tensor, b: Tensor | None) -> None:
        """Pack another weight, of the same shape, and bias."""
        raise NotImplementedError

    def _fill(self, weight: Tensor, bias: Tensor | None, **geometry: Any) -> None:
        """Set every attribute; called once, on a module that has only been through `nn.Module.__init__`."""
        raise NotImplementedError

    def _read_weight(self) -> Any:
        return self._weight_bias()[0]

    def _read_bias(self) -> Any:
        return self._weight_bias()[1]

    def _weight_facts(self) -> tuple[torch.dtype, tuple[int, ...]]:
        return torch.qint8, type(self).family.weight_shape(type(self).family.geometry(self))

    def _bias_facts(self) -> tuple[torch.dtype, tuple[int, ...]]:
        raise NotImplementedError

    @classmethod
    def _holding(cls, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Self:
        """A new module with this weight, packed once; subclasses with a constructor are built through it."""
        if cls.__init__ is cls._constructor:
            module = cls.__new__(cls)
            nn.Module.__init__(module)
            module._fill(weight, bias, **geometry)
        else:
            module = cls(**geometry, **cls._constructor_extras(weight, bias))
            module.set_weight_bias(weight, bias)
        return module

    @classmethod
    def _quantized(cls, weight: Tensor, bias: Tensor | None, observer: nn.Module, geometry: Geometry) -> Self:
        """A new module from a float weight and the observer that has seen it."""
        return cls._holding(cls._quantizer(weight, observer)(weight), own_bias(bias), geometry)

    @classmethod
    def _quantizer(cls, weight: Tensor, observer: nn.Module) -> Callable[[Tensor], Tensor]:
        """What makes of the weight, which the observer has seen, the one that is packed."""
        dtype = getattr(observer, "dtype", None)
        if dtype not in cls._weight_dtypes:
            names = " or ".join(str(dtype) for dtype in cls._weight_dtypes)
            raise InvalidRequest(
                f"the weight observer of {cls.__name__} must have dtype {names}, but "
                f"{type(observer).__name__} has {dtype}: change the weight observer in the qconfig"
            )
        return WeightQuantizer.of(weight, observer) if dtype is torch.qint8 else Tensor.float

    @classmethod
    def _planned(
        cls, found: Calibrated, geometry: Geometry, sliver: Sliver, **attributes: Any
    ) -> Callable[[], Self]:
        """What makes the module, with these attributes, later: the checks are done now, a sliver is packed.

        The weight is read again then: until that a folded one would be a second copy of it.
        """
        quantizer = cls._quantizer(found.weight, found.weight_observer)
        if not isinstance(quantizer, WeightQuantizer) or quantizer.by_columns:
            weight, narrow = sliver(found.weight, geometry)
            cls._holding(quantizer(weight), own_bias(found.bias), narrow)
        else:
            cls._holding(quantizer(found.weight), own_bias(found.bias), geometry)
        source = found.geometry

        def make() -> Self:
            weight, bias = folded(source)
            module = cls._holding(quantizer(weight), own_bias(bias), geometry)
            for name, value in attributes.items():
                setattr(module, name, value)
            return module

        return make

    @classmethod
    def _constructor_extras(cls, _weight: Tensor, bias: Tensor | None) -> dict[str, Any]:
        return {"bias": bias is not None}

    @classmethod
    def _geometry_of(cls, _mod: nn.Module, inner: nn.Module) -> Geometry:
        """Constructor arguments from the source module and the weighted module in it."""
        return cls.family.geometry(inner)

    @classmethod
    def _check_source(cls, mod: nn.Module) -> None:
        """Accept the exact float types, and whatever fake-quantizes a weight of this family."""
        got = type_before_parametrizations(mod)
        kinds = cls._FLOAT_MODULE
        expected = cast("tuple[type, ...]", kinds if isinstance(kinds, tuple) else (kinds,))
        if got in expected or (hasattr(mod, "weight_fake_quant") and cls.family.describes(mod)):
            return
        names = ", ".join(kind.__name__ for kind in expected)
        raise InvalidRequest(
            f"{cls.__name__}.from_float only works for {names} or its QAT form, but got: "
            f"{got.__module__}.{got.__name__}; give another type a mapping entry of its own"
        )

    @classmethod
    def _from_reference(cls, ref: nn.Module) -> Self:
        inner = unwrapped(ref)
        if not hasattr(inner, "get_quantized_weight"):
            raise InvalidRequest(
                f"{cls.__name__}.from_reference takes a reference module, which has get_quantized_weight(), "
                f"but got {type(inner).__name__}"
            )
        return cls._holding(inner.get_quantized_weight(), inner.bias, cls._geometry_of(ref, inner))
