"""What quantized embeddings share: the operators of either width, and `from_float`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations
from typing_extensions import Self

from observers import default_float_qparams_observer
from quantization.backends.ops import PackedOps
from quantization.errors import InvalidRequest
from quantization.nn.calibrated import seen
from quantization.nn.modes.packed_rows import ROW_DTYPES, PackedRows, codes_of, from_codes
from quantization.nn.modes.state import explain_other_stage
from quantization.nn.weight_view import ViewOf
from quantization.qparams import WeightQuantizer

_CURE = (
    "set embedding.qconfig = float_qparams_weight_only_qconfig (8 bit) or "
    "float_qparams_weight_only_qconfig_4bit, or leave the module out by a qconfig of None before prepare"
)


def _lookup(byte: PackedOps, four_bit: PackedOps) -> Any:
    run, run_4bit = byte.run, four_bit.run

    def _lookup(self: Any, indices: Tensor) -> Tensor:
        flat = indices.reshape(-1)
        if self._packed_params.dtype == torch.quint4x2:
            return run_4bit(self._packed_params._packed_weight, flat)[:, : self.embedding_dim]
        return run(self._packed_params._packed_weight, flat)

    return _lookup


def _sum_bags(byte: PackedOps, four_bit: PackedOps) -> Any:
    run, run_4bit = byte.run, four_bit.run

    def _sum_bags(
        self: Any,
        indices: Tensor,
        offsets: Tensor | None,
        per_sample_weights: Tensor | None,
        compressed_indices_mapping: Tensor | None,
    ) -> Tensor:
        packed = self._packed_params._packed_weight
        last = self.include_last_offset
        pruned, mapping = self.pruned_weights, compressed_indices_mapping
        if self._packed_params.dtype == torch.quint4x2:
            bags = run_4bit(packed, indices, offsets, False, 0, pruned, per_sample_weights, mapping, last)
            return bags[:, : self.embedding_dim]
        return run(packed, indices, offsets, False, 0, pruned, per_sample_weights, mapping, last)

    return _sum_bags


class PackedEmbedding(nn.Module):
    """What both embeddings share: the packed weight in a child, `_packed_params`, and how they are built.

    A class statement names the operators for 8 and for 4 bits (`rows`, `bags`), which reach the methods
    through closures; the class of the child (`params`); the float class (`source`) and its QAT form
    (`trained`).
    """

    if TYPE_CHECKING:  # TorchScript cannot read annotations that are strings
        num_embeddings: int
        embedding_dim: int
        _packed_params: Any
        _lookup: Any
        _sum_bags: Any

    _version = 1
    _ONLY_READS = True
    _FLOAT_MODULE: ClassVar[Any] = None
    _sources: ClassVar[tuple[type[nn.Module], ...]] = ()
    _FIELDS: ClassVar[dict[str, Any]] = {}
    _params: ClassVar[type[PackedRows]]
    # What `dtype` says is in the child, which TorchScript reads there.
    __jit_unused_properties__: ClassVar[list[str]] = ["dtype"]

    def __init_subclass__(
        cls,
        *,
        rows: tuple[PackedOps, PackedOps] | None = None,
        bags: tuple[PackedOps, PackedOps] | None = None,
        params: type[PackedRows] | None = None,
        source: type[nn.Module] | None = None,
        trained: type[nn.Module] | None = None,
    ) -> None:
        super().__init_subclass__()
        if source is not None and trained is not None:
            cls._FLOAT_MODULE = source
            cls._sources = (source, trained)
        if params is not None:
            cls._params = params
        if rows is not None:
            cls._lookup = _lookup(*rows)
        if bags is not None:
            cls._sum_bags = _sum_bags(*bags)

    def _fill(self, num_embeddings: int, embedding_dim: int, params: PackedRows, fields: Any) -> None:
        """Set every attribute, on a module that has only been through `nn.Module.__init__`."""
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        for name, default in self._FIELDS.items():
            setattr(self, name, fields.get(name, default))
        self._packed_params = params

    def _construct(
        self,
        num_embeddings: int,
        embedding_dim: int,
        weight: Tensor | None,
        dtype: torch.dtype,
        **fields: Any,
    ) -> None:
        if weight is None:
            params = self._params(num_embeddings, embedding_dim, dtype)
        else:
            if list(weight.shape) != [num_embeddings, embedding_dim]:
                raise InvalidRequest(
                    "Shape of weight does not match num_embeddings and embedding_dim: expected "
                    f"{[num_embeddings, embedding_dim]}, got {list(weight.shape)}"
                )
            params = self._params.holding(weight)
        self._fill(num_embeddings, embedding_dim, params, fields)

    def __setstate__(self, state: Any) -> None:
        # Modules pickled by torch.ao have fewer attributes, and `dtype` as one of them.
        fields = {name: state.get(name, default) for name, default in self._FIELDS.items()}
        super().__setstate__({name: value for name, value in {**state, **fields}.items() if name != "dtype"})

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        explain_other_stage(self, ("_packed_params._packed_weight",), state_dict, prefix, error_msgs)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weight: quint8 or quint4x2."""
        return self._packed_params.dtype

    weight: Any = ViewOf("_read_weight", "_weight_facts", "The quantized weight: `module.weight()`.")

    def _read_weight(self) -> Tensor:
        weight = self._packed_params._weight()
        if weight.size(1) == self.embedding_dim:
            return weight
        scales, zero_points = weight.q_per_channel_scales(), weight.q_per_channel_zero_points()
        return from_codes(codes_of(weight)[:, : self.embedding_dim], scales, zero_points, weight.dtype)

    def _weight_facts(self) -> tuple[torch.dtype, tuple[int, ...]]:
        return self.dtype, (self.num_embeddings, self.embedding_dim)

    def set_weight(self, w: Tensor) -> None:
        """Pack another weight of the same shape, quantized per row with float zero points."""
        expected = self.num_embeddings, self.embedding_dim
        if tuple(w.shape) != expected:
            raise InvalidRequest(
                f"the weight of {self._get_name()} must have shape {expected}, got {tuple(w.shape)}"
            )
        self._packed_params.set_weight(w)

    def _get_name(self) -> str:
        return "Quantized" + type(self).__name__

    def __repr__(self) -> str:
        return f"{self._get_name()}({self.extra_repr()})"

    def extra_repr(self) -> str:
        """Sizes, dtype and qscheme."""
        return (
            f"num_embeddings={self.num_embeddings}, embedding_dim={self.embedding_dim}, "
            f"dtype={self.dtype}, qscheme={self.weight().qscheme()}"
        )

    @classmethod
    def from_float(cls, mod: Any, use_precomputed_fake_quant: bool = False) -> Self:
        """Quantize the weight of a float or QAT embedding; the source stays as it is.

        The width, 8 or 4 bits, is that of the weight observer; a qconfig of None stands for the default 8-bit
        one. With `max_norm`, rows are renormalised first, as a float lookup would do.
        """
        weight, quantizer = cls._read(mod)
        return cls._like(mod, cls._params.holding(quantizer(weight)))

    @classmethod
    def planned(cls, mod: Any, _use_precomputed_fake_quant: bool) -> Callable[[], Self]:
        """`from_float` in two steps: the checks now and the rest when called."""
        weight, quantizer = cls._read(mod)
        cls._params.holding(quantizer(weight[:, :1]))
        return lambda: cls._like(mod, cls._params.holding(quantizer(_table(mod))))

    @classmethod
    def _read(cls, mod: Any) -> tuple[Tensor, WeightQuantizer]:
        observer = cls._weight_observer(mod)
        weight = _table(mod)
        return weight, WeightQuantizer.of(weight, seen(weight, observer))

    @classmethod
    def from_reference(cls, ref: Any) -> Self:
        """Pack the weight of a reference embedding."""
        if not hasattr(ref, "get_quantized_weight"):
            raise InvalidRequest(
                f"{cls.__name__}.from_reference takes a reference module, which has get_quantized_weight(), "
                f"but got {type(ref).__name__}"
            )
        return cls._like(ref, cls._params.holding(ref.get_quantized_weight()))

    @classmethod
    def _like(cls, mod: Any, params: PackedRows) -> Self:
        module = cls.__new__(cls)
        nn.Module.__init__(module)
        fields = {name: getattr(mod, name, default) for name, default in cls._FIELDS.items()}
        module._fill(mod.num_embeddings, mod.embedding_dim, params, fields)
        return module

    @classmethod
    def _weight_observer(cls, mod: Any) -> Any:
        """A copy of the QAT module's own, or a new one of the kind embeddings can use."""
        kind, got = cls.__name__, type_before_parametrizations(mod)
        if got not in cls._sources:
            raise InvalidRequest(
                f"nnq.{kind}.from_float only works for {cls._FLOAT_MODULE.__name__} and its QAT form, but "
                f"got: {got.__module__}.{got.__name__}; subclasses need a mapping entry of their own"
            )
        if hasattr(mod, "weight_fake_quant"):
            observer = copy.deepcopy(mod.weight_fake_quant)
        elif not hasattr(mod, "qconfig"):
            raise InvalidRequest(f"{kind} input float module must have qconfig defined; {_CURE}")
        else:
            own = None if mod.qconfig is None else mod.qconfig.weight
            observer = default_float_qparams_observer() if own is None else own()
        qscheme, dtype = getattr(observer, "qscheme", None), getattr(observer, "dtype", None)
        if qscheme != torch.per_channel_affine_float_qparams or dtype not in ROW_DTYPES:
            raise InvalidRequest(
                f"{kind} quantization is only supported with float_qparams_weight_only_qconfig. The weight "
                f"observer {type(observer).__name__} has dtype {dtype} and qscheme {qscheme}: {_CURE}"
            )
        return observer


def _table(mod: Any) -> Tensor:
    """The float rows, renormalised as a lookup does."""
    weight = mod.weight.detach().float()
    return weight if mod.max_norm is None else weight.renorm(mod.norm_type, 0, mod.max_norm)
