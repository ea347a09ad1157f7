"""leimao/PyTorch-Quantization-Aware-Training: a stub-wrapping class and nested fusing in a ResNet."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.support import quiet_jit


class Block(nn.Module):
    def __init__(self, functional):
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(4)
        self.skip_add = functional()
        self.downsample = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.skip_add.add_relu(y, self.downsample(x))


class Net(nn.Module):
    def __init__(self, functional):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.layer1 = nn.Sequential(Block(functional), Block(functional))
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        y = self.layer1(self.relu(self.bn1(self.conv1(x))))
        return self.fc(y.mean((2, 3)))


def wrapped(q, model):
    class Quantized(nn.Module):
        def __init__(self):
            super().__init__()
            self.quant = q.QuantStub()
            self.model_fp32 = model
            self.dequant = q.DeQuantStub()

        def forward(self, x):
            return self.dequant(self.model_fp32(self.quant(x)))

    return Quantized()


def fuse_nested(model, fuse):
    model = fuse(model, [["conv1", "bn1", "relu"]], inplace=True)
    for name, module in model.named_children():
        if "layer" in name:
            for block in module.children():
                fuse(block, [["conv1", "bn1", "relu1"], ["conv2", "bn2"]], inplace=True)
                for sub_name, sub_block in block.named_children():
                    if sub_name == "downsample":
                        fuse(sub_block, [["0", "1"]], inplace=True)
    return model


def test_train_convert_script(names, engine, tmp_path):
    q = names.q
    model = Net(names.nnq.FloatFunctional)
    x = torch.randn(2, 3, 8, 8)
    fused = fuse_nested(copy.deepcopy(model).train(), q.fuse_modules_qat)
    quantized = wrapped(q, fused)
    quantized.qconfig = q.get_default_qat_qconfig(engine)
    q.prepare_qat(quantized, inplace=True)
    optimizer = torch.optim.SGD(quantized.parameters(), lr=0.01)
    quantized(x).square().mean().backward()
    optimizer.step()
    quantized.to("cpu").eval()
    expected = quantized(x)
    quantized = q.convert(quantized, inplace=True)
    assert (quantized(x) - expected).abs().max() < 0.1
    with quiet_jit():
        torch.jit.save(torch.jit.script(quantized), tmp_path / "model.pt")
        loaded = torch.jit.load(tmp_path / "model.pt", map_location="cpu")
    assert torch.equal(loaded(x), quantized(x))


def test_fused_model_computes_what_the_float_one_does(names):
    model = Net(names.nnq.FloatFunctional).eval()
    fused = fuse_nested(copy.deepcopy(model), names.q.fuse_modules)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-5)


def test_fusing_in_train_mode_names_the_right_function(names):
    with pytest.raises(AssertionError, match="fuse_modules_qat"):
        fuse_nested(Net(names.nnq.FloatFunctional).train(), names.q.fuse_modules)


def test_training_with_a_post_training_qconfig_is_spoken_of(names):
    model = wrapped(names.q, Net(names.nnq.FloatFunctional)).train()
    model.qconfig = names.q.get_default_qconfig("qnnpack")
    with pytest.warns(UserWarning, match="get_default_qat_qconfig"):
        names.q.prepare_qat(model, inplace=True)
