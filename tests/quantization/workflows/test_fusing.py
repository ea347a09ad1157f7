"""fuse_modules and fuse_modules_qat against torch.ao, and what they refuse."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from quantization.errors import InvalidRequest, Unsupported
from quantization.nn import fused
from quantization.workflows import fuser_methods
from quantization.workflows.fusing import fuse_modules, fuse_modules_qat
from tests.support import quiet_ao

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def _make(kind: type[nn.Module]) -> nn.Module:
    if issubclass(kind, nn.Linear):
        return kind(4, 6)
    if issubclass(kind, nn.modules.conv._ConvNd):
        return kind(4, 6, 1)
    if not issubclass(kind, nn.modules.batchnorm._BatchNorm):
        return kind()
    norm = kind(6)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    nn.init.normal_(norm.weight)
    return norm


def _model(pattern: tuple[type[nn.Module], ...]) -> tuple[nn.Sequential, torch.Tensor]:
    parts = [_make(kind) for kind in pattern]
    width = 6 if isinstance(parts[0], nn.modules.batchnorm._BatchNorm) else 4
    rank = next((int(kind.__name__[-2]) for kind in pattern if kind.__name__.endswith("d")), 1)
    spatial = [] if pattern[0] is nn.Linear else [5] * rank
    return nn.Sequential(*parts), torch.randn(3, width, *spatial)


PATTERNS = list(fuser_methods._DEFAULT_OP_LIST_TO_FUSER_METHOD)
TRAINABLE = [p for p in PATTERNS if "Transpose" not in p[0].__name__]


def spelled(pattern: Any) -> str:
    return "-".join(kind.__name__ for kind in pattern)


@pytest.fixture
def ao() -> Any:
    return pytest.importorskip("torch.ao.quantization")


def assert_same_models(a: nn.Module, b: nn.Module) -> None:
    names = [[(name, type(m).__name__) for name, m in model.named_modules()] for model in (a, b)]
    assert names[0] == names[1]
    assert list(a.state_dict()) == list(b.state_dict())
    assert all(torch.equal(value, b.state_dict()[key]) for key, value in a.state_dict().items())


# --- against the oracle ---------------------------------------------------------------------------


def test_the_table_is_the_oracles(ao: Any) -> None:
    from torch.ao.quantization import fuser_method_mappings

    theirs = fuser_method_mappings._DEFAULT_OP_LIST_TO_FUSER_METHOD
    assert list(theirs) == PATTERNS or set(theirs) == set(PATTERNS)
    for pattern, method in theirs.items():
        assert fuser_methods._DEFAULT_OP_LIST_TO_FUSER_METHOD[pattern].__name__ == method.__name__


@pytest.mark.parametrize("pattern", PATTERNS, ids=spelled)
def test_fusing_for_evaluation_equals_the_oracle(ao: Any, pattern: Any) -> None:
    model, x = _model(pattern)
    model.eval()
    names = [str(i) for i in range(len(pattern))]
    with quiet_ao():
        theirs = ao.fuse_modules(copy.deepcopy(model), names)
    ours = fuse_modules(model, names)
    assert_same_models(theirs, ours)
    assert torch.equal(theirs(x), ours(x))
    torch.testing.assert_close(ours(x), model(x), rtol=1e-4, atol=1e-5)
    assert [m.training for m in ours] == [False] * len(pattern)


@pytest.mark.parametrize("pattern", TRAINABLE, ids=spelled)
def test_fusing_for_training_equals_the_oracle(ao: Any, pattern: Any) -> None:
    model, x = _model(pattern)
    names = [str(i) for i in range(len(pattern))]
    with quiet_ao():
        theirs = ao.fuse_modules_qat(copy.deepcopy(model), [names])
    ours = fuse_modules_qat(model, [names])
    assert_same_models(theirs, ours)
    assert torch.equal(theirs(x), ours(x))
    assert all(m.training for m in ours.modules())


def test_grouped_transposed_convolutions_fold_too() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), _make(nn.BatchNorm2d)).eval()
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(fuse_modules(model, ["0", "1"])(x), model(x), rtol=1e-4, atol=1e-5)


# --- what a call changes --------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()
        self.body = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
        self.fc, self.relu2 = nn.Linear(3, 2), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu2(self.fc(self.body(self.relu1(self.bn1(self.conv1(x)))).mean((2, 3))))


RUNS = [["conv1", "bn1", "relu1"], ["body.0", "body.1"], ["fc", "relu2"]]


def test_a_copy_is_fused_and_the_model_kept() -> None:
    model = Net().eval()
    x = torch.randn(2, 1, 5, 5)
    before = copy.deepcopy(model)
    fused_model = fuse_modules(model, RUNS)
    assert_same_models(before, model)
    torch.testing.assert_close(fused_model(x), model(x), rtol=1e-4, atol=1e-5)
    kinds = [type(m).__name__ for m in (fused_model.conv1, fused_model.body[0], fused_model.fc)]
    assert kinds == ["ConvReLU2d", "Conv2d", "LinearReLU"]
    assert all(type(m) is nn.Identity for m in (fused_model.bn1, fused_model.relu1, fused_model.body[1]))


def test_in_place_keeps_the_parameters() -> None:
    model = Net()
    parameters = list(model.parameters())
    assert fuse_modules_qat(model, RUNS, inplace=True) is model
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    assert isinstance(model.conv1, fused.ConvBnReLU2d) and isinstance(model.body[0], fused.ConvBn2d)


def test_hooks_run_once_after_fusing() -> None:
    calls: list[str] = []
    model = Net().eval()
    model.conv1.register_forward_pre_hook(lambda m, args: calls.append("before"))
    model.relu1.register_forward_hook(lambda m, args, output: calls.append("after"))
    fuse_modules(model, RUNS, inplace=True)(torch.randn(1, 1, 5, 5))
    assert calls == ["before", "after"]


def test_fusing_for_training_works_in_evaluation_mode() -> None:
    assert isinstance(fuse_modules_qat(Net().eval(), RUNS).conv1, fused.ConvBnReLU2d)


def test_conv_and_relu_fuse_in_any_mode() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1).eval(), nn.ReLU())
    assert isinstance(fuse_modules(model, ["0", "1"])[0], fused.ConvReLU2d)


# --- your own methods -----------------------------------------------------------------------------


def test_additional_methods_extend_and_win() -> None:
    def own(is_qat: bool, conv: nn.Module, act: nn.Module) -> nn.Module:
        return nn.Sequential(conv, act)

    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU6(), nn.Conv2d(1, 1, 1), nn.ReLU()).eval()
    methods = {(nn.Conv2d, nn.ReLU6): own, (nn.Conv2d, nn.ReLU): own}
    config = {"additional_fuser_method_mapping": methods}
    result = fuse_modules(model, [["0", "1"], ["2", "3"]], fuse_custom_config_dict=config)
    assert [type(m) for m in result] == [nn.Sequential, nn.Identity] * 2


def test_fuser_func_gets_modules_mode_and_methods() -> None:
    seen: list[Any] = []

    def fuser(modules: list[nn.Module], is_qat: bool, methods: Any) -> list[nn.Module]:
        seen.append((len(modules), is_qat, methods))
        return [nn.Sequential(*modules), nn.Identity()]

    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU6())
    assert type(fuse_modules_qat(model, ["0", "1"], fuser_func=fuser)[0]) is nn.Sequential
    assert seen == [(2, True, {})]


def test_get_fuser_method() -> None:
    assert fuser_methods.get_fuser_method((nn.Conv3d, nn.BatchNorm3d)) is fuser_methods.fuse_conv_bn
    assert (
        fuser_methods.get_fuser_method((nn.ConvTranspose1d, nn.BatchNorm1d))
        is fuser_methods.fuse_convtranspose_bn
    )
    own = {(nn.Conv2d, nn.ReLU): fused.ConvReLU2d}
    assert fuser_methods.get_fuser_method((nn.Conv2d, nn.ReLU), own) is fused.ConvReLU2d
    made = fuser_methods.get_fuser_method((nn.Linear, nn.ReLU))(False, nn.Linear(1, 1), nn.ReLU())
    assert type(made) is fused.LinearReLU


def test_get_fuser_method_new_takes_the_closest_pattern() -> None:
    anything = fuser_methods.MatchAllNode
    table = {(nn.ReLU, anything): "any", (nn.ReLU, (nn.BatchNorm2d, anything)): "norm"}
    assert fuser_methods.get_fuser_method_new((nn.ReLU, nn.Linear), table) == "any"
    assert fuser_methods.get_fuser_method_new((nn.ReLU, (nn.BatchNorm2d, nn.Conv2d)), table) == "norm"
    with pytest.raises(InvalidRequest, match="did not find fuser method for"):
        fuser_methods.get_fuser_method_new((nn.Tanh, nn.Linear), table)


def test_patterns_are_listed_in_the_oracles_order(ao: Any) -> None:
    from torch.ao.quantization import fuser_method_mappings

    def named(pattern: Any) -> Any:
        return tuple(map(named, pattern)) if isinstance(pattern, tuple) else pattern.__name__

    nested = (nn.ReLU, (nn.BatchNorm2d, nn.Conv2d))
    theirs = fuser_method_mappings._get_valid_patterns(nested)
    assert list(map(named, theirs)) == list(map(named, fuser_methods._get_valid_patterns(nested)))


def test_reversed_methods_take_the_last_module_first() -> None:
    def order(is_qat: bool, *modules: Any) -> Any:
        return modules

    assert fuser_methods._reverse2(order)(False, "relu", "conv") == ("conv", "relu")
    assert fuser_methods._reverse3(order)(False, "relu", ("bn", "conv")) == ("conv", "bn", "relu")


# --- errors: one clear error, and the model as before ---------------------------------------------


def linear_bn(**options: Any) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(**{"num_features": 2, **options}))


def conv_bn(**options: Any) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(**{"num_features": 2, **options}))


def mixed(*kinds: nn.Module) -> nn.Sequential:
    model = nn.Sequential(*kinds)
    model[0].eval()
    return model


def transposed_bn() -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose2d(2, 2, 1), nn.BatchNorm2d(2))


NOT_FOUND = r"did not find fuser method for: \("
SAME_MODE = r" and BN both must be in the same mode \(train or eval\)\. Got "
CASES = {
    "training mode": (
        fuse_modules,
        conv_bn(),
        r"Fusion only for eval! The Conv2d .* fuse_modules_qat.*model\.eval",
    ),
    "training mode linear": (fuse_modules, linear_bn(), "Fusion only for eval! .*fuse_modules_qat"),
    "training mode transposed": (fuse_modules, transposed_bn(), "Fusion only for eval!"),
    "training mode three": (fuse_modules, nn.Sequential(*conv_bn(), nn.ReLU()), "Fusion only for eval!"),
    "mixed conv": (
        fuse_modules,
        mixed(*conv_bn()),
        "Conv" + SAME_MODE + "Conv2d in eval, BatchNorm2d in train",
    ),
    "mixed linear": (fuse_modules, mixed(*linear_bn()), "Linear" + SAME_MODE),
    "mixed transposed": (fuse_modules_qat, mixed(*transposed_bn()), "ConvTranspose" + SAME_MODE),
    "unknown types": (
        fuse_modules,
        nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU6()),
        NOT_FOUND + ".*Conv2d [+] ReLU",
    ),
    "no fusion starts so": (
        fuse_modules,
        nn.Sequential(nn.Tanh(), nn.ReLU()),
        NOT_FOUND + ".*runs that fuse: ",
    ),
    "fused already": (
        fuse_modules,
        nn.Sequential(fused.ConvReLU2d(nn.Conv2d(1, 1, 1), nn.ReLU()), nn.ReLU()),
        NOT_FOUND + ".*ConvReLU2d is fused already",
    ),
    "width": (
        fuse_modules_qat,
        conv_bn(num_features=3),
        "Output channel of Conv2d must match num_features of BatchNorm2d",
    ),
    "width in evaluation": (
        fuse_modules,
        conv_bn(num_features=3).eval(),
        "Output channel of Conv2d must match num_features of BatchNorm2d",
    ),
    "width linear": (
        fuse_modules_qat,
        linear_bn(num_features=3),
        "Output features of Linear must match num_features of BatchNorm1d",
    ),
    "affine": (
        fuse_modules_qat,
        conv_bn(affine=False),
        "Only support fusing BatchNorm2d with affine set to True",
    ),
    "affine linear": (
        fuse_modules_qat,
        linear_bn(affine=False),
        "Only support fusing BatchNorm1d with affine set to True",
    ),
    "statistics": (
        fuse_modules_qat,
        conv_bn(track_running_stats=False),
        "Only support fusing BatchNorm2d with tracking_running_stats set to True",
    ),
    "statistics in evaluation": (
        fuse_modules,
        conv_bn(track_running_stats=False).eval(),
        r"bn\.running_mean and bn\.running_var must not be None",
    ),
    "transposed qat": (
        fuse_modules_qat,
        transposed_bn(),
        r"Fusing ConvTranspose\+BatchNorm not yet supported in QAT\.",
    ),
}


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_what_cannot_fuse_is_named_and_nothing_changes(case: str, inplace: bool) -> None:
    fuse, run, message = CASES[case]
    # A run that does fuse comes first, so that undoing it is part of the test.
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), *copy.deepcopy(run))
    model[0].register_forward_pre_hook(print)
    before = [(name, id(m), m.training, len(m._forward_pre_hooks)) for name, m in model.named_modules()]
    names = [str(2 + i) for i in range(len(run))]
    with pytest.raises(InvalidRequest, match=message) as error:
        fuse(model, [["0", "1"], names], inplace=inplace)
    assert f"while fusing '{', '.join(names)}'" in str(error.value)
    after = [(name, id(m), m.training, len(m._forward_pre_hooks)) for name, m in model.named_modules()]
    assert before == after


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (["conv1", "bn2"], "cannot fuse 'bn2': 'Net' object has no attribute 'bn2'; did you mean 'bn1'"),
        ([["fc", "relu2"], ["fc", "relu2"]], "cannot fuse 'fc': that module is already listed"),
        (["body.1", "body.0"], "must follow each other"),
        ([], NOT_FOUND),
        ("conv1", "list of module names"),
    ],
    ids=["no such name", "repeated", "out of order", "empty", "a string"],
)
def test_wrong_lists_are_refused_before_anything_is_fused(runs: Any, message: str) -> None:
    model = Net().eval()
    before = [id(m) for m in model.modules()]
    with pytest.raises(InvalidRequest, match=message):
        fuse_modules(model, runs, inplace=True)
    assert before == [id(m) for m in model.modules()]


def test_a_fuser_func_that_forgets_the_identities_is_told() -> None:
    model = Net().eval()
    with pytest.raises(InvalidRequest, match="returned 1 modules for 2"):
        fuse_modules(model, ["fc", "relu2"], fuser_func=lambda modules, is_qat, methods: modules[:1])


@pytest.mark.parametrize("model", [3, nn.Linear], ids=["int", "class"])
def test_the_model_must_be_a_module(model: Any) -> None:
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module"):
        fuse_modules(model, ["0", "1"])


@pytest.mark.parametrize("is_qat", [True, False])
def test_fuser_methods_refuse_types_they_have_no_class_for(is_qat: bool) -> None:
    parts = nn.Linear(2, 2).train(is_qat), nn.BatchNorm2d(2).train(is_qat), nn.ReLU().train(is_qat)
    with pytest.raises(Unsupported, match=f"Cannot fuse {'train' if is_qat else 'eval'} modules"):
        fuser_methods.fuse_conv_bn_relu(is_qat, *parts)


def test_a_custom_norm_is_refused_for_training_by_type() -> None:
    with pytest.raises(Unsupported, match="Cannot fuse train modules"):
        fuser_methods.fuse_conv_bn(True, nn.Conv2d(2, 2, 1), nn.BatchNorm1d(2))
