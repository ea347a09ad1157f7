"""QConfig, its defaults, and the engines': equal to torch.ao's, and clear about misuse."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from observers import (
    FakeQuantize,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    default_per_channel_weight_observer,
    default_weight_observer,
)
from quantization import qconfig as qconfigs, qconfig_engines
from quantization.errors import InvalidRequest, QuantizationWarning
from quantization.qconfig import (
    QConfig,
    QConfigDynamic,
    assert_valid_qconfig,
    bind_to_device,
    default_dynamic_qconfig,
    default_engine,
    default_per_channel_qconfig,
    default_qconfig,
    default_weight_only_qconfig,
    get_default_qat_qconfig,
    get_default_qconfig,
    qconfig_equals,
    usable_engines,
)
from tests.quantization.factories import spell_qconfig
from tests.support import ENGINES, quiet_ao, quiet_jit

KNOWN = ("fbgemm", "x86", "qnnpack", "onednn")
# What torch.ao has no counterpart of.
OUR_OWN = ("full_range_dynamic_qconfig", "per_row_dynamic_qconfig")
DEFAULTS = sorted(
    name for name, value in vars(qconfigs).items() if isinstance(value, QConfig) and name not in OUR_OWN
)


def theirs() -> Any:
    return pytest.importorskip("torch.ao.quantization.qconfig")


@pytest.fixture
def all_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has every engine and VNNI, so that no default warns."""
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True, raising=False)
    monkeypatch.setattr(qconfig_engines, "usable_engines", lambda: list(KNOWN))


def test_there_are_as_many_defaults_as_in_torch_ao() -> None:
    expected = {name for name, value in vars(theirs()).items() if isinstance(value, theirs().QConfig)}
    assert expected - set(DEFAULTS) == set()


@pytest.mark.parametrize("name", [n for n in DEFAULTS if not n.startswith("_X86")])
def test_each_default_is_that_of_torch_ao(name: str) -> None:
    assert spell_qconfig(getattr(qconfigs, name)) == spell_qconfig(getattr(theirs(), name))


@pytest.mark.parametrize("backend", KNOWN)
@pytest.mark.usefixtures("all_engines")
def test_each_engine_has_the_defaults_of_torch_ao(backend: str) -> None:
    with quiet_ao():
        assert spell_qconfig(get_default_qconfig(backend)) == spell_qconfig(
            theirs().get_default_qconfig(backend)
        )
    for version in (0, 1):
        expected = theirs().get_default_qat_qconfig(backend, version)
        assert spell_qconfig(get_default_qat_qconfig(backend, version)) == spell_qconfig(expected)


@pytest.mark.parametrize("name", DEFAULTS)
def test_each_default_makes_observers(name: str) -> None:
    qconfig = getattr(qconfigs, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # reduce_range, which some defaults ask for
        made = [factory() for factory in qconfig if factory is not None]
    assert all(isinstance(observer, nn.Module) for observer in made)
    assert len(made) >= 1


def test_a_qconfig_is_a_pair() -> None:
    activation, weight = default_qconfig
    assert (activation, weight) == (default_qconfig.activation, default_qconfig.weight)
    assert default_qconfig._replace(weight=None).weight is None
    assert repr(QConfig(None, None)) == "QConfig(activation=None, weight=None)"
    assert copy.deepcopy(QConfig(MinMaxObserver, None)) == QConfig(MinMaxObserver, None)
    assert pickle.loads(pickle.dumps(QConfig(MinMaxObserver, None))) == QConfig(MinMaxObserver, None)


@pytest.mark.parametrize("cls", [QConfig, QConfigDynamic])
@pytest.mark.parametrize("field", ["activation", "weight"])
def test_an_observer_instead_of_a_factory_is_refused(cls: Any, field: str) -> None:
    arguments = {"activation": MinMaxObserver, "weight": MinMaxObserver, field: MinMaxObserver()}
    expected = rf"{cls.__name__} received observer instance.*{field} is a MinMaxObserver.*with_args\(\.\.\.\)"
    with pytest.raises(InvalidRequest, match=expected):
        cls(**arguments)


def test_scripted_observers_are_let_through() -> None:
    with quiet_jit():
        scripted = torch.jit.script(MinMaxObserver())
    qconfig = QConfig(activation=scripted, weight=scripted._c)
    assert qconfig.activation is scripted and qconfig.weight is scripted._c


def test_the_dynamic_qconfig_observes_nothing_by_default() -> None:
    assert QConfigDynamic() == (nn.Identity, nn.Identity)


# --- engines


def test_the_default_is_that_of_the_current_engine(engine: str) -> None:
    assert default_engine() == engine
    assert get_default_qconfig() is get_default_qconfig(engine)
    assert get_default_qat_qconfig() is get_default_qat_qconfig(engine)


@pytest.mark.parametrize(
    ("current", "supported", "expected"),
    [
        ("none", ["none", "qnnpack"], "qnnpack"),
        ("none", ["qnnpack", "none", "onednn", "x86", "fbgemm"], "x86"),
        ("fbgemm", ["none", "fbgemm", "x86"], "fbgemm"),
        ("x86", ["none", "qnnpack"], "qnnpack"),
        ("none", ["none"], "x86"),
    ],
)
def test_the_default_engine_is_one_that_works_here(
    current: str, supported: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Backend:
        engine = current
        supported_engines = supported

    monkeypatch.setattr(torch.backends, "quantized", Backend)
    assert default_engine() == expected


def test_the_usable_engines_are_those_of_torch() -> None:
    assert sorted(usable_engines()) == sorted(ENGINES)


@pytest.mark.parametrize("getter", [get_default_qconfig, get_default_qat_qconfig])
@pytest.mark.parametrize("backend", ["tensorrt", "executorch", "none", ""])
def test_an_unknown_engine_is_refused(getter: Any, backend: str) -> None:
    expected = (
        rf"backend: {backend} not supported\. backend must be one of "
        r"\['fbgemm', 'x86', 'qnnpack', 'onednn'\]; this machine has \['"
    )
    with pytest.raises(InvalidRequest, match=expected):
        getter(backend)
    with pytest.raises(AssertionError, match="must be one of"):
        getter(backend, 7)


@pytest.mark.parametrize(("getter", "version"), [(get_default_qconfig, 1), (get_default_qat_qconfig, 2)])
def test_an_unknown_version_is_refused(getter: Any, version: int) -> None:
    with pytest.raises(InvalidRequest, match=rf"Version number: {version} ?in {getter.__name__} is not supp"):
        getter(None, version)


@pytest.mark.parametrize("getter", [get_default_qconfig, get_default_qat_qconfig])
def test_an_engine_that_this_machine_lacks_works_but_says_so(
    getter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qconfig_engines, "usable_engines", lambda: ["qnnpack"])
    with pytest.warns(
        QuantizationWarning, match=r"for fbgemm was made, but this machine has \['qnnpack'\]"
    ) as seen:
        qconfig = getter("fbgemm")
    assert qconfig in (qconfig_engines.X86.static, *qconfig_engines.X86.qat)
    assert seen[0].filename == __file__


def test_onednn_without_vnni_says_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qconfig_engines, "usable_engines", lambda: list(KNOWN))
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False, raising=False)
    with pytest.warns(QuantizationWarning, match=r"no VNNI.*get_default_qconfig\('x86'\)") as seen:
        get_default_qconfig("onednn")
    assert seen[0].filename == __file__
    get_default_qat_qconfig("onednn")
    get_default_qconfig("x86")


# --- comparison


def test_equal_recipes_are_equal() -> None:
    made = [
        QConfig(
            FakeQuantize.with_args(
                observer=MovingAverageMinMaxObserver.with_args(averaging_constant=constant)
            ),
            default_weight_observer,
        )
        for constant in (0.5, 0.5, 0.1)
    ]
    assert qconfig_equals(made[0], made[1])
    assert not qconfig_equals(made[0], made[2])


@pytest.mark.parametrize("backend", KNOWN)
@pytest.mark.usefixtures("all_engines")
def test_comparison_agrees_with_torch_ao(backend: str) -> None:
    ours = [getattr(qconfigs, name) for name in DEFAULTS]
    with quiet_ao():
        expected = [
            theirs().qconfig_equals(theirs().get_default_qconfig(backend), getattr(theirs(), name))
            for name in DEFAULTS
        ]
    assert [qconfig_equals(get_default_qconfig(backend), other) for other in ours] == expected


def test_none_equals_only_none() -> None:
    assert qconfig_equals(None, None)
    assert not qconfig_equals(None, default_qconfig) and not qconfig_equals(default_qconfig, None)


# --- what modules accept

CONV_TRANSPOSE = [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]


@pytest.mark.parametrize("cls", CONV_TRANSPOSE)
def test_a_transposed_convolution_refuses_per_channel_weights(cls: Any) -> None:
    with pytest.raises(AssertionError) as caught:
        assert_valid_qconfig(default_per_channel_qconfig, cls(1, 1, 1))
    # Programs compare the text with torch.ao's, so the module and the cure are in the note.
    assert str(caught.value) == "Per channel weight observer is not supported yet for ConvTranspose{n}d."
    notes = " ".join(getattr(caught.value, "__notes__", [f"{cls.__name__} default_weight_observer"]))
    assert cls.__name__ in notes and "default_weight_observer" in notes


@pytest.mark.parametrize("cls", CONV_TRANSPOSE)
def test_the_cure_in_the_message_works(cls: Any) -> None:
    qconfig = default_per_channel_qconfig
    assert_valid_qconfig(QConfig(activation=qconfig.activation, weight=default_weight_observer), cls(1, 1, 1))


@pytest.mark.parametrize("qconfig", [None, QConfig(MinMaxObserver, None), default_weight_only_qconfig])
def test_a_transposed_convolution_accepts_anything_else(qconfig: Any) -> None:
    assert_valid_qconfig(qconfig, nn.ConvTranspose2d(1, 1, 1))


def test_other_modules_accept_per_channel_weights() -> None:
    assert_valid_qconfig(default_per_channel_qconfig, nn.Linear(1, 1))


# --- binding to a device


def factory_kwargs(qconfig: Any) -> Any:
    return qconfig.weight.callable_args["factory_kwargs"]()


def test_bound_factories_follow_the_module() -> None:
    module = nn.Linear(2, 2)
    bound: Any = bind_to_device(default_qconfig, module)
    assert factory_kwargs(bound) == {"device": torch.device("cpu")}
    module.to("meta")
    assert bound.weight().min_val.device.type == "meta"


def test_the_original_qconfig_is_left_alone() -> None:
    before = spell_qconfig(default_qconfig)
    bound: Any = bind_to_device(default_qconfig, nn.Linear(2, 2))
    assert spell_qconfig(default_qconfig) == before
    assert default_qconfig.weight.callable_args == {}
    assert bound != default_qconfig and qconfig_equals(bound, default_qconfig)


def test_binding_again_replaces_the_module() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2, device="meta")
    bound = bind_to_device(bind_to_device(default_qconfig, first), second)
    assert factory_kwargs(bound) == {"device": torch.device("meta")}


def test_factories_that_know_no_device_stay_as_they_are() -> None:
    for factory in (default_dynamic_qconfig.activation, nn.Identity, partial(MinMaxObserver), None):
        bound: Any = bind_to_device(QConfig(factory, factory), nn.Linear(2, 2))
        assert bound.activation is factory and bound.weight is factory


def test_nothing_to_bind() -> None:
    assert bind_to_device(None, nn.Linear(2, 2)) is None
    assert bind_to_device(default_qconfig, None) is default_qconfig


@pytest.mark.parametrize(
    "module", [nn.ReLU(), nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1, device="meta"))]
)
def test_modules_without_one_device(module: nn.Module) -> None:
    expected = {"device": torch.device("cpu")} if len(module._modules) else None
    assert factory_kwargs(bind_to_device(default_qconfig, module)) == expected


def carrying() -> Any:
    module = nn.Linear(2, 2)
    module.qconfig = bind_to_device(default_qconfig, module)
    return module


def test_a_deep_copy_follows_itself() -> None:
    module = carrying()
    twin = copy.deepcopy(module)
    twin.to("meta")
    assert factory_kwargs(twin.qconfig) == {"device": torch.device("meta")}
    assert factory_kwargs(module.qconfig) == {"device": torch.device("cpu")}


def test_a_pickled_module_follows_itself() -> None:
    twin = pickle.loads(pickle.dumps(carrying()))
    assert qconfig_equals(twin.qconfig, default_qconfig)
    twin.to("meta")
    assert factory_kwargs(twin.qconfig) == {"device": torch.device("meta")}


def test_copying_only_the_qconfig_keeps_the_module() -> None:
    module = carrying()
    bound = copy.deepcopy(module.qconfig)
    module.to("meta")
    assert factory_kwargs(bound) == {"device": torch.device("meta")}


def test_a_qconfig_keeps_no_module_alive() -> None:
    bound = carrying().qconfig
    gc.collect()
    assert factory_kwargs(bound) is None
    assert bound.weight().min_val.device.type == "cpu"
    assert factory_kwargs(pickle.loads(pickle.dumps(bound))) is None


def test_looking_at_a_qconfig_warns_nobody() -> None:
    """Observers with `reduce_range` warn when made; only those that are used may do so."""
    qconfig = QConfig(HistogramObserver.with_args(reduce_range=True), default_per_channel_weight_observer)
    bind_to_device(qconfig, nn.Linear(1, 1))
    qconfigs._activation_is_memoryless(qconfig)


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        (MovingAverageMinMaxObserver, False),
        (MovingAverageMinMaxObserver.with_args(averaging_constant=1), True),
        (FakeQuantize.with_args(averaging_constant=1), True),
    ],
    ids=["average", "last batch", "fake quantizer of the last batch"],
)
def test_memoryless_activations_are_recognised(factory: Any, expected: bool) -> None:
    assert qconfigs._activation_is_memoryless(QConfig(factory, None)) is expected


@pytest.mark.parametrize("name", [n for n in DEFAULTS if n != "_default_quint8_placeholder_qconfig"])
def test_the_predicates_agree_with_torch_ao(name: str) -> None:
    ours, oracle = getattr(qconfigs, name), getattr(theirs(), name)
    with quiet_ao():
        memory = theirs()._activation_is_memoryless(oracle)
        reuse = theirs()._is_reuse_input_qconfig(oracle)
    assert (qconfigs._activation_is_memoryless(ours), qconfigs._is_reuse_input_qconfig(ours)) == (
        memory,
        reuse,
    )
