"""Which qconfig a module ends up with."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from observers import MinMaxObserver
from quantization.engine.propagate import propagate_qconfig_, unmatched
from quantization.errors import InvalidRequest
from quantization.qconfig import (
    QConfig,
    default_per_channel_qconfig,
    default_qconfig,
    float16_dynamic_qconfig,
    qconfig_equals,
)


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU()))


def test_children_inherit():
    m = model()
    m.qconfig = default_qconfig
    propagate_qconfig_(m)
    assert all(qconfig_equals(module.qconfig, default_qconfig) for module in m.modules())


def test_type_beats_parent_name_beats_type_attribute_beats_name():
    m = model()
    m[1][1].qconfig = None
    table = {
        "": default_qconfig,
        nn.Linear: default_per_channel_qconfig,
        "1.0": float16_dynamic_qconfig,
        "1.1": default_qconfig,
    }
    propagate_qconfig_(m, table)
    assert qconfig_equals(m.qconfig, default_qconfig)
    assert qconfig_equals(m[0].qconfig, default_per_channel_qconfig)
    assert qconfig_equals(m[1][0].qconfig, float16_dynamic_qconfig)
    assert m[1][1].qconfig is None


def test_a_type_beats_an_inherited_none():
    m = model()
    propagate_qconfig_(m, {"1": None, nn.Linear: default_qconfig})
    assert m[1].qconfig is None
    assert qconfig_equals(m[1][0].qconfig, default_qconfig)


def test_nothing_set_is_none_everywhere():
    m = model()
    propagate_qconfig_(m)
    assert all(module.qconfig is None for module in m.modules())


def test_non_traceable_modules_are_left_alone():
    m = model()
    m.qconfig = default_qconfig
    propagate_qconfig_(m, prepare_custom_config_dict={"non_traceable_module_name": ["1"]})
    assert hasattr(m[0], "qconfig")
    assert not hasattr(m[1], "qconfig")


@pytest.mark.parametrize("wrong", ["fbgemm", 8, torch.qint8, {"": default_qconfig}], ids=repr)
def test_what_is_no_qconfig_is_refused_by_name_and_the_model_is_as_before(wrong: object):
    m = model()
    m.qconfig = default_qconfig
    m[1][0].qconfig = wrong
    with pytest.raises(InvalidRequest, match=r"'1\.0'.*expected a QConfig or None"):
        propagate_qconfig_(m)
    assert not hasattr(m[0], "qconfig")


def test_an_observer_instance_is_refused():
    with pytest.raises(ValueError, match="with_args"):
        QConfig(activation=MinMaxObserver(), weight=MinMaxObserver)


def test_per_channel_weights_of_conv_transpose_are_refused_early():
    m = nn.Sequential(nn.ConvTranspose2d(2, 2, 3))
    m.qconfig = default_per_channel_qconfig
    with pytest.raises(InvalidRequest, match="Per channel weight observer is not supported yet") as caught:
        propagate_qconfig_(m)
    assert isinstance(caught.value, AssertionError) and caught.value.path == "0"
    assert "'0'" in str(getattr(caught.value, "__notes__", "'0'"))
    assert not hasattr(m[0], "qconfig")


def test_unmatched_keys():
    assert unmatched(model(), {nn.Linear, nn.LSTM, "1.0", "2"}) in ([nn.LSTM, "2"], ["2", nn.LSTM])
