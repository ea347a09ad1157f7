"""Quantized models in files of plain tensors: structure and weights, and no code."""

from quantization.checkpoint.models import load as load, save as save
