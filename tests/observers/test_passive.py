"""Observers that compute nothing, and the parked torchao types."""

from __future__ import annotations

import pytest
import torch

import observers
from observers import QuantizationWarning


def test_fixed_qparams_observer():
    observer = observers.default_affine_fixed_qparams_observer()
    x = torch.randn(3)
    assert observer(x) is x
    assert [t.item() for t in observer.calculate_qparams()] == [1 / 256, 0]
    assert (observer.quant_min, observer.quant_max) == (0, 255)
    with pytest.raises(NotImplementedError, match="doesn't support dynamic"):
        observers.FixedQParamsObserver(1.0, 0, is_dynamic=True)


def test_recording_keeps_copies():
    observer = observers.RecordingObserver()
    x = torch.zeros(2)
    observer(x)
    x += 1
    observer(x)
    assert [t.tolist() for t in observer.get_tensor_value()] == [[0.0, 0.0], [1.0, 1.0]]


def test_placeholder_fields():
    observer = observers.PlaceholderObserver(
        dtype=torch.float16, custom_op_name="embedding_bag_byte", eps=0.5
    )
    assert (observer.dtype, observer.custom_op, observer.eps) == (torch.float16, "embedding_bag_byte", 0.5)
    assert observer.qscheme == torch.per_tensor_affine
    assert observers.PlaceholderObserver().eps == torch.finfo(torch.float32).eps
    with pytest.warns(QuantizationWarning, match="is_dynamic"):
        assert not observers.PlaceholderObserver(compute_dtype=torch.quint8).is_dynamic


@pytest.mark.parametrize("name", ["Placeholder", "Noop", "Recording", "ReuseInput"])
def test_those_without_statistics_say_so(name):
    observer = getattr(observers, f"{name}Observer")()
    x = torch.randn(2)
    assert observer(x) is x
    with pytest.raises(observers.QuantizationError, match=f"should not be called for {name}Observer"):
        observer.calculate_qparams()


def test_derived_observer():
    inner = observers.MinMaxObserver()
    inner(torch.tensor([0.0, 2.55]))

    def double(those):
        scale, zero_point = those[0].calculate_qparams()
        return scale * 2, zero_point

    derived = observers._DerivedObserverOrFakeQuantize(torch.qint32, [inner], double)
    assert derived.calculate_qparams()[0].item() == pytest.approx(0.02)
    with pytest.raises(AssertionError, match="Must provide a valid ch_axis"):
        observers._DerivedObserverOrFakeQuantize(torch.qint32, [], double, qscheme=torch.per_channel_affine)


def test_the_abstract_bases_cannot_be_made():
    for base in (
        observers.ObserverBase,
        observers.UniformQuantizationObserverBase,
        observers.FakeQuantizeBase,
        observers.AffineQuantizedObserverBase,
    ):
        with pytest.raises(TypeError, match="abstract"):
            base(torch.quint8)


def test_a_minimal_observer_of_the_users_own():
    class Mine(observers.ObserverBase):
        def forward(self, x):
            return x

        def calculate_qparams(self):
            return torch.tensor([1.0]), torch.tensor([0])

    assert Mine.with_args(dtype=torch.qint8)().dtype == torch.qint8


def test_a_base_without_reset_says_so():
    class Mine(observers.UniformQuantizationObserverBase):
        def forward(self, x):
            return x

        def calculate_qparams(self):
            return self._calculate_qparams(torch.tensor(0.0), torch.tensor(1.0))

    observer = Mine()
    assert observer.calculate_qparams()[0].item() == pytest.approx(1 / 255)
    with pytest.raises(NotImplementedError, match="Cannot reset min/max values in the given observer"):
        observer.reset_min_max_vals()


@pytest.mark.parametrize(
    ("granularity", "shape", "block"),
    [
        (observers.PerTensor(), (2, 3, 8), (2, 3, 8)),
        (observers.PerAxis(0), (2, 8), (1, 8)),
        (observers.PerAxis(-1), (2, 3, 8), (2, 3, 1)),
        (observers.PerRow(), (2, 3, 8), (1, 1, 8)),
        (observers.PerToken(), (2, 8), (1, 8)),
        (observers.PerGroup(4), (2, 8), (1, 4)),
        (observers.PerBlock((2, 4)), (2, 8), (2, 4)),
    ],
    ids=repr,
)
def test_block_sizes(granularity, shape, block):
    assert observers.get_block_size(shape, granularity) == block


def test_granularities_are_values():
    assert observers.PerAxis(1) == observers.PerAxis(1) != observers.PerAxis(2)
    assert len({observers.PerTensor(), observers.PerTensor(), observers.PerRow()}) == 2
    with pytest.raises(AssertionError, match="shape dim of 2"):
        observers.get_block_size((8,), observers.PerGroup(4))
    with pytest.raises(ValueError, match="Unsupported Granularity"):
        observers.get_block_size((8,), observers.Granularity())


def test_affine_observer_base():
    class Mine(observers.AffineQuantizedObserverBase):
        def forward(self, input):
            return input

        def calculate_qparams(self):
            return torch.tensor([1.0]), torch.tensor([0])

    make = Mine.with_args(mapping_type=observers.MappingType.SYMMETRIC, target_dtype=torch.int8)
    observer = make(granularity=observers.PerTensor())
    assert observer.zero_point_domain is observers.ZeroPointDomain.INT
    with pytest.raises(AssertionError, match="granularity is None"):
        make(granularity=None)
    with pytest.raises(NotImplementedError, match="FX"):
        observer.convert(None, None)
