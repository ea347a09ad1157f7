"""Sequences of different lengths in one batch, as `torch.nn.utils.rnn.PackedSequence` orders them."""

from __future__ import annotations

from torch import Tensor


def apply_permutation(tensor: Tensor, permutation: Tensor, dim: int = 1) -> Tensor:
    """The slices of `tensor` along `dim` in the order of `permutation`.

    >>> apply_permutation(torch.tensor([[1, 2, 3]]), torch.tensor([2, 0, 1])).tolist()
    [[3, 1, 2]]
    """
    return tensor.index_select(dim, permutation)
