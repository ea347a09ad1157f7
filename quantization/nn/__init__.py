"""Layers: the float, observed, QAT, quantized and reference forms of each, in a module file per form."""
