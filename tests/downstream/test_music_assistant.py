"""music-assistant: the inner model of somebody else's wrapper, with an engine chosen at run time."""

from __future__ import annotations

import torch
from torch import nn


class Wrapper:
    """A third party's class; only its `model` attribute is a module."""

    def __init__(self):
        self.model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)).eval()

    def __call__(self, x):
        with torch.inference_mode():
            return self.model(x)


def test_inner_model_is_replaced(names, engine):
    wrapper = Wrapper()
    x = torch.randn(3, 8)
    expected = wrapper(x)
    assert torch.backends.quantized.engine == engine
    wrapper.model = names.q.quantize_dynamic(wrapper.model, {nn.Linear}, dtype=torch.qint8)
    assert type(wrapper.model[0]) is names.nnqd.Linear
    assert (wrapper(x) - expected).abs().max() < 0.1
