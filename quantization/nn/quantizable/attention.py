"""Multihead attention written out in parts that can be observed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantization.errors import Unsupported
from quantization.markers import Composite
from quantization.nn.functional_modules import FloatFunctional
from quantization.nn.quantizable.parts import (
    prepare_parts,
    prepare_parts_for_training,
    qconfig_of,
    require_type,
    trains,
)
from quantization.stubs import DeQuantStub, QuantStub

_SEPARATE = ("q_proj_weight", "k_proj_weight", "v_proj_weight")  # where kdim or vdim differ from embed_dim


def _check_arguments(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool
) -> None:
    if query.dim() != 2 and query.dim() != 3:
        raise ValueError(f"query should be unbatched 2D or batched 3D tensor but received {query.dim()}-D")
    if key.dim() != query.dim() or value.dim() != query.dim():
        raise ValueError(
            f"query has {query.dim()} dimensions, key {key.dim()} and value {value.dim()}; they must agree"
        )
    if is_causal and attn_mask is None:
        raise ValueError(
            "Need attn_mask if specifying the is_causal hint: pass "
            "nn.Transformer.generate_square_subsequent_mask(length)"
        )


def _check_masks(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, length: int, keys: int, batch: int, heads: int
) -> None:
    if attn_mask is not None:
        expected = [length, keys] if attn_mask.dim() == 2 else [batch * heads, length, keys]
        if list(attn_mask.shape) != expected:
            raise ValueError(
                f"attn_mask has shape {list(attn_mask.shape)}, but should be (query length, key length) or "
                f"(batch * heads, query length, key length), here {expected}"
            )
    if key_padding_mask is not None and list(key_padding_mask.shape) != [batch, keys]:
        raise ValueError(
            f"key_padding_mask has shape {list(key_padding_mask.shape)}, but should be (batch, key length), "
            f"here {[batch, keys]}"
        )


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """A mask to add to the scores: where a boolean one is True, minus infinity."""
    if mask.is_floating_point():
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask.to(torch.bool), float("-inf"))


def _float(x: Tensor) -> Tensor:
    return x.dequantize() if x.is_quantized else x  # dequantize has no gradient


def _grown(mask: Tensor | None) -> Tensor | None:
    """The mask for one more key, which is never masked."""
    return None if mask is None else F.pad(mask, [0, 1])


class MultiheadAttention(nn.MultiheadAttention, Composite):
    """`nn.MultiheadAttention` made of parts that can be observed and quantized; same arguments, same results.

    Products of attention are float: the projections are dequantized, and what attention gives is quantized
    again, both results. So `prepare` and `convert` need not know of it.

    >>> mha = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    >>> from quantization.qconfig import default_qconfig
    >>> mha.qconfig = default_qconfig
    >>> x = torch.ones(3, 5, 8)
    >>> torch.allclose(MultiheadAttention.from_float(mha)(x, x, x)[0], mha(x, x, x)[0], atol=1e-6)
    True
    """

    _FLOAT_MODULE: type[nn.Module] = nn.MultiheadAttention
    __constants__ = ["batch_first"]  # noqa: RUF012 (TorchScript's own name for it)

    if TYPE_CHECKING:
        bias_k: Any
        bias_v: Any
        in_proj_weight: Any
        in_proj_bias: Any

    def __init__(
        self, embed_dim: int, num_heads: int, dropout: float = 0.0, bias: bool = True,
        add_bias_kv: bool = False, add_zero_attn: bool = False, kdim: int | None = None,
        vdim: int | None = None, batch_first: bool = False, device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        where = {"device": device, "dtype": dtype}
        super().__init__(
            embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, **where
        )
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias, **where)
        self.linear_Q = nn.Linear(embed_dim, embed_dim, bias=bias, **where)
        self.linear_K = nn.Linear(self.kdim, embed_dim, bias=bias, **where)
        self.linear_V = nn.Linear(self.vdim, embed_dim, bias=bias, **where)
        self.q_scaling_product = FloatFunctional()
        self.q_scaling_product.only_scalars = True  # or convert would miss its range
        self.quant_attn_output = QuantStub()
        self.quant_attn_output_weights = QuantStub()
        self.dequant_q = DeQuantStub()
        self.dequant_k = DeQuantStub()
        self.dequant_v = DeQuantStub()

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        return self._forward_impl(
            query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
        )

    def _forward_impl(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        _check_arguments(query, key, value, attn_mask, is_causal)
        batched = query.dim() == 3
        if not batched:
            query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)

        length, batch = query.shape[0], query.shape[1]
        _check_masks(attn_mask, key_padding_mask, length, key.shape[0], batch, self.num_heads)
        q, k, v = self._projected(query, key, value)
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, _float(self.bias_k).repeat(1, k.shape[1], 1)])
            v = torch.cat([v, _float(self.bias_v).repeat(1, v.shape[1], 1)])
            attn_mask, key_padding_mask = _grown(attn_mask), _grown(key_padding_mask)
        if self.add_zero_attn:
            k = torch.cat([k, torch.zeros_like(k[:1])])
            v = torch.cat([v, torch.zeros_like(v[:1])])
            attn_mask, key_padding_mask = _grown(attn_mask), _grown(key_padding_mask)

        scores = torch.bmm(self._heads(q), self._heads(k).transpose(1, 2))
        scores = self._masked(scores, batch, attn_mask, key_padding_mask)
        weights = F.dropout(torch.softmax(scores, dim=-1), p=self.dropout, training=self.training)
        output = torch.bmm(weights, self._heads(v)).transpose(0, 1).reshape(length, batch, self.embed_dim)
        output = self.out_proj(self.quant_attn_output(output))
        # Run even if nobody asks for the weights: a model may ask only after calibration.
        weights = self.quant_attn_output_weights(weights)

        if not batched:
            output = output.squeeze(1)
        elif self.batch_first:
            output = output.transpose(0, 1)
        if not need_weights:
            return output, None
        weights = weights.view(batch, self.num_heads, length, -1)
        if average_attn_weights:
            weights = weights.mean(dim=1)
        return output, weights if batched else weights.squeeze(0)

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, scaled, key and value in float, each (length, batch, embed_dim)."""
        q = self.q_scaling_product.mul_scalar(self.linear_Q(query), float(self.head_dim) ** -0.5)
        k, v = self.linear_K(key), self.linear_V(value)
        return self.dequant_q(q), self.dequant_k(k), self.dequant_v(v)

    def _heads(self, x: Tensor) -> Tensor:
        """(length, batch, embed_dim) to (batch * heads, length, head_dim)."""
        return x.reshape(x.shape[0], x.shape[1] * self.num_heads, self.head_dim).transpose(0, 1)

    def _masked(
        self, scores: Tensor, batch: int, attn_mask: Tensor | None, key_padding_mask: Tensor | None
    ) -> Tensor:
        """The scores (batch * heads, length, keys) with both masks added."""
        length, keys = scores.shape[1], scores.shape[2]
        if attn_mask is not None:
            scores = scores + _additive(attn_mask, scores)
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask, scores).view(batch, 1, 1, keys)
            scores = (scores.view(batch, self.num_heads, length, keys) + padding).view(-1, length, keys)
        return scores

    def _get_name(self) -> str:
        return "QuantizableMultiheadAttention"

    @classmethod
    def from_float(cls, other: nn.MultiheadAttention) -> MultiheadAttention:
        """Make the composite of a float module with a qconfig, with observers.

        It trains if `other` is in training mode and the qconfig fake-quantizes; else it is for inference.
        """
        require_type(other, nn.MultiheadAttention, cls.__name__)
        qconfig = qconfig_of(other)
        new = cls(
            other.embed_dim, other.num_heads, other.dropout, other.in_proj_bias is not None,
            other.bias_k is not None, other.add_zero_attn, other.kdim, other.vdim, other.batch_first,
            device="meta",
        )  # fmt: skip
        for name, param in other._parameters.items():
            new._parameters[name] = param
        new.out_proj.weight, new.out_proj.bias = other.out_proj.weight, other.out_proj.bias
        new._fill(_projections(other))
        new._retire_in_proj()
        new.qconfig = qconfig
        if other.training and trains(qconfig):
            prepare_parts_for_training(new.train())
        else:
            prepare_parts(new.eval())
        return new

    def _fill(self, projections: list[tuple[Tensor, Tensor | None]]) -> None:
        for linear, (weight, bias) in zip(
            (self.linear_Q, self.linear_K, self.linear_V), projections, strict=True
        ):
            linear.weight = nn.Parameter(weight.detach().clone())
            if bias is not None:
                linear.bias = nn.Parameter(bias.detach().clone())

    def _retire_in_proj(self) -> None:
        """Keep the float module's joint projections for checkpoints only: without a gradient."""
        for name in ("in_proj_weight", "in_proj_bias", *_SEPARATE):
            param = self._parameters.get(name)
            if param is not None:
                self._parameters[name] = nn.Parameter(param.detach(), requires_grad=False)

    @classmethod
    def from_observed(cls, other: nn.Module) -> Any:
        """Raise: the quantized module is what comes of an observed one."""
        raise Unsupported(
            "It looks like you are trying to prepare an MHA module. Please, see the examples on quantizable "
            "MHAs: quantized.MultiheadAttention.from_observed takes an observed one, and convert() calls it"
        )

    @torch.jit.unused
    def dequantize(self) -> nn.MultiheadAttention:
        """The float module with the weights of this one, quantized or not.

        >>> MultiheadAttention(8, 2).dequantize()
        MultiheadAttention(
          (out_proj): NonDynamicallyQuantizableLinear(in_features=8, out_features=8, bias=True)
        )
        """
        parts = [_float_parameters(x) for x in (self.linear_Q, self.linear_K, self.linear_V, self.out_proj)]
        weights, biases = [weight for weight, _ in parts], [bias for _, bias in parts if bias is not None]
        if self._qkv_same_embed_dim:
            values: dict[str, Tensor] = {
                "in_proj_weight": torch.cat(weights[:3]),
                "out_proj.weight": weights[3],
            }
        else:
            values = dict(zip((*_SEPARATE, "out_proj.weight"), weights, strict=True))
        if biases:
            values |= {"in_proj_bias": torch.cat(biases[:3]), "out_proj.bias": biases[3]}
        if self.bias_k is not None:
            values |= {"bias_k": _float(self.bias_k).detach(), "bias_v": _float(self.bias_v).detach()}
        new = nn.MultiheadAttention(
            self.embed_dim, self.num_heads, self.dropout, bool(biases), "bias_k" in values,
            self.add_zero_attn, self.kdim, self.vdim, self.batch_first, dtype=weights[0].dtype,
        )  # fmt: skip
        new.load_state_dict(values)
        return new.train(self.training)


def _projections(other: nn.MultiheadAttention) -> list[tuple[Tensor, Tensor | None]]:
    """Weight and bias of query, key and value of a float module."""
    if other._qkv_same_embed_dim:
        weights = list(other.in_proj_weight.chunk(3))
    else:
        weights = [other.get_parameter(name) for name in _SEPARATE]
    biases = [None] * 3 if other.in_proj_bias is None else list(other.in_proj_bias.chunk(3))
    return list(zip(weights, biases, strict=True))


def _float_parameters(linear: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a linear layer, float or quantized, on the CPU or where it is."""
    weight, bias = linear.weight, linear.bias
    weight = weight if isinstance(weight, Tensor) else weight()
    bias = bias if bias is None or isinstance(bias, Tensor) else bias()
    return weight.detach().dequantize(), None if bias is None else bias.detach()
