"""torchvision: quantizable models and its QAT training loop."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn


def make_block(names):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(4)
            self.relu1 = nn.ReLU(inplace=True)
            self.conv2 = nn.Conv2d(4, 4, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(4)
            self.add_relu = names.nnq.FloatFunctional()

        def forward(self, x):
            y = self.relu1(self.bn1(self.conv1(x)))
            return self.add_relu.add_relu(self.bn2(self.conv2(y)), x)

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.quant = names.q.QuantStub()
            self.block = Residual()
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(4, 3)
            self.dequant = names.q.DeQuantStub()

        def forward(self, x):
            y = self.pool(self.block(self.quant(x))).flatten(1)
            return self.dequant(self.fc(y))

        def fuse_model(self, is_qat=None):
            fuse = names.q.fuse_modules_qat if is_qat else names.q.fuse_modules
            for module in self.modules():
                if type(module) is Residual:
                    fuse(module, [["conv1", "bn1", "relu1"], ["conv2", "bn2"]], inplace=True)

    return Classifier()


def step(model, optimizer):
    optimizer.zero_grad()
    loss = model(torch.randn(4, 4, 6, 6)).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


def test_post_training(names, engine):
    q = names.q
    model = make_block(names).eval()
    model.fuse_model(is_qat=False)
    observer = q.default_observer if engine == "qnnpack" else q.default_per_channel_weight_observer
    weight = q.default_weight_observer if engine == "qnnpack" else observer
    model.qconfig = q.QConfig(activation=q.default_observer, weight=weight)
    q.prepare(model, inplace=True)
    x = torch.randn(16, 4, 6, 6)
    expected = model(x)
    q.convert(model, inplace=True)
    assert type(model.block.conv1) is names.nniq.ConvReLU2d
    assert type(model.block.add_relu) is names.nnq.QFunctional
    assert (model(x) - expected).abs().max() < 0.1


def test_training_with_the_schedule_of_the_reference_script(names, engine):
    q = names.q
    model = make_block(names).train()
    model.fuse_model(is_qat=True)
    model.qconfig = q.get_default_qat_qconfig(engine)
    q.prepare_qat(model, inplace=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model.apply(q.enable_observer)
    model.apply(q.enable_fake_quant)
    for epoch in range(4):
        model.train()
        step(model, optimizer)
        if epoch >= 1:
            model.apply(q.disable_observer)
        if epoch >= 2:
            model.apply(names.nniqat.freeze_bn_stats)
        scale = model.block.conv1.activation_post_process.scale.clone()
        running = model.block.conv1.bn.running_mean.clone()
        with torch.inference_mode():
            quantized = copy.deepcopy(model).eval().to("cpu")
            q.convert(quantized, inplace=True)
            assert type(quantized.block.conv1) is names.nniq.ConvReLU2d
            assert quantized(torch.randn(2, 4, 6, 6)).shape == (2, 3)
        assert type(model.block.conv1) is names.nniqat.ConvBnReLU2d  # the model in training is untouched
    assert step(model, optimizer) >= 0
    assert torch.equal(model.block.conv1.activation_post_process.scale, scale)
    assert torch.equal(model.block.conv1.bn.running_mean, running)


def test_float_training_before_observers_are_switched_off(names):
    q = names.q
    model = make_block(names).train()
    model.fuse_model(is_qat=True)
    model.qconfig = q.default_qat_qconfig
    q.prepare_qat(model, inplace=True)
    x = torch.randn(4, 4, 6, 6)
    model.eval()
    model.apply(q.disable_fake_quant)
    plain = model(x)
    model.apply(q.enable_fake_quant)
    assert not torch.equal(model(x), plain)
    model.apply(q.disable_fake_quant)
    assert torch.equal(model(x), plain)


def test_sync_batch_norm_after_prepare_qat(names):
    q = names.q
    model = make_block(names).train()
    model.fuse_model(is_qat=True)
    model.qconfig = q.default_qat_qconfig
    q.prepare_qat(model, inplace=True)
    keys = list(model.state_dict())
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert type(model.block.conv1.bn) is nn.SyncBatchNorm
    assert type(model.block.conv1) is names.nniqat.ConvBnReLU2d
    assert list(model.state_dict()) == keys
    model.apply(names.nniqat.freeze_bn_stats)
    assert not model.block.conv1.bn.training
    model.eval()  # a SyncBatchNorm trains only in a process group, and on GPUs
    x = torch.randn(4, 4, 6, 6)
    expected = model(x)
    quantized = q.convert(copy.deepcopy(model))
    assert (quantized(x) - expected).abs().max() < 0.1


def test_checkpoints_of_a_quantized_and_of_a_training_model(names, tmp_path):
    q = names.q

    def prepared():
        model = make_block(names).train()
        model.fuse_model(is_qat=True)
        model.qconfig = q.default_qat_qconfig
        return q.prepare_qat(model)

    model = prepared()
    step(model, torch.optim.SGD(model.parameters(), lr=0.01))
    states = {"model": model.state_dict(), "model_eval": q.convert(model.eval()).state_dict()}
    torch.save(states, tmp_path / "c")
    saved = torch.load(tmp_path / "c", weights_only=True)
    resumed = prepared()
    resumed.load_state_dict(saved["model"])
    with pytest.warns(UserWarning, match="saw no data"):
        quantized = q.convert(prepared().eval())
    quantized.load_state_dict(saved["model_eval"])
    x = torch.randn(4, 4, 6, 6)
    assert torch.equal(quantized(x), q.convert(resumed.eval())(x))


def test_observer_keys_that_mobilenet_v3_reads(names):
    model = make_block(names).train()
    model.qconfig = names.q.get_default_qat_qconfig("qnnpack")
    names.q.prepare_qat(model, inplace=True)
    prefix = "quant.activation_post_process."
    keys = [prefix + k for k in ("fake_quant_enabled", "observer_enabled", "scale", "zero_point")]
    assert set(keys) <= set(model.state_dict())
