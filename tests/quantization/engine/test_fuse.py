"""The mechanism of fusing: names, order, hooks, folding."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from quantization.engine.fuse import (
    as_runs,
    check_runs,
    check_widths,
    fold_batch_norm,
    fuse_run,
    get_module,
    set_module,
)
from quantization.errors import InvalidRequest


class Block(nn.Module):
    """Children in an order that differs from the one in which they run."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(2, 2, 1)
        self.scale = 2.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.conv(x))


# --- names ----------------------------------------------------------------------------------------


def test_get_and_set_follow_dotted_names() -> None:
    model = nn.Sequential(nn.Sequential(nn.ReLU()))
    new = nn.Tanh()
    set_module(model, "0.0", new)
    assert get_module(model, "0.0") is new
    set_module(model, "0", new)
    assert model[0] is new


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("block.con", r"'Block' object has no attribute 'con'; did you mean 'block\.conv'"),
        ("xyz", r"'Sequential' object has no attribute 'xyz'; it has 'block'"),
        ("block.conv.xyz", r"'Conv2d' object has no attribute 'xyz'; did you mean"),
    ],
)
def test_a_wrong_name_gets_the_closest_ones(name: str, message: str) -> None:
    model = nn.Sequential()
    model.block = Block()
    with pytest.raises(InvalidRequest, match=message) as error:
        get_module(model, name)
    assert isinstance(error.value, AttributeError)


@pytest.mark.parametrize("name", ["scale", "conv.weight", "scale.x"])
def test_only_modules_fuse(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"it is a (float|Parameter), expected a module"):
        get_module(Block(), name)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["a", "b"], [["a", "b"]]),
        (("a", "b"), [["a", "b"]]),
        ([("a", "b"), ["c", "d"]], [["a", "b"], ["c", "d"]]),
    ],
)
def test_one_run_or_several(given: Any, expected: Any) -> None:
    assert as_runs(given) == expected


@pytest.mark.parametrize("given", ["conv", [0, 1], [["a"], "b"], [[["a"]]], {"a": "b"}, None])
def test_other_shapes_of_the_list_are_described(given: Any) -> None:
    with pytest.raises(InvalidRequest, match="list of module names, or a list of such lists"):
        as_runs(given)


# --- order ----------------------------------------------------------------------------------------


def chain() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 2, 1),
        nn.Identity(),
        nn.Sequential(nn.BatchNorm2d(2), nn.ReLU()),
        nn.Conv2d(2, 2, 1),
        Block(),
    )


@pytest.mark.parametrize(
    "run", [["0", "2.0"], ["0", "2.0", "2.1"], ["2.0", "2.1"], ["4.conv", "4.relu"], ["0"]]
)
def test_what_follows_each_other_passes(run: list[str]) -> None:
    check_runs(chain(), [run])


@pytest.mark.parametrize("run", [["0", "2.1"], ["2.1", "2.0"], ["3", "2.0"], ["0", "3"], ["2.0", "3"]])
def test_what_does_not_follow_in_a_sequential_is_refused(run: list[str]) -> None:
    with pytest.raises(InvalidRequest, match="must follow each other") as error:
        check_runs(chain(), [run])
    assert all(repr(name) in str(error.value) for name in run)


def test_outside_a_sequential_the_order_is_the_callers_word() -> None:
    check_runs(Block(), [["conv", "relu"]])
    check_runs(chain(), [["3", "4.conv"]])


def test_a_sequential_with_its_own_forward_says_nothing_about_order() -> None:
    class Reversed(nn.Sequential):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            for module in reversed(self):
                input = module(input)
            return input

    check_runs(Reversed(nn.ReLU(), nn.Conv2d(2, 2, 1)), [["1", "0"]])


@pytest.mark.parametrize("runs", [[["0", "0"]], [["0", "2.0"], ["2.0", "2.1"]], [["0", "2.0"], ["0", "2.0"]]])
def test_a_module_listed_twice_is_refused(runs: list[list[str]]) -> None:
    with pytest.raises(InvalidRequest, match="already listed as"):
        check_runs(chain(), runs)


def test_a_module_shared_under_two_names_is_refused_by_both_names() -> None:
    model = Block()
    model.again = model.relu
    with pytest.raises(InvalidRequest, match="cannot fuse 'again': that module is already listed as 'relu'"):
        check_runs(model, [["conv", "relu", "again"]])


# --- hooks ----------------------------------------------------------------------------------------


class Calls(list):
    def pre_hook(self, name: str) -> Any:
        return lambda module, args: self.append(f"before {name}")

    def hook(self, name: str) -> Any:
        return lambda module, args, output: self.append(f"after {name}")


def hooked(*modules: nn.Module) -> tuple[list[nn.Module], Calls]:
    calls = Calls()
    for index, module in enumerate(modules):
        module.register_forward_pre_hook(calls.pre_hook(str(index)))
        module.register_forward_hook(calls.hook(str(index)))
    return list(modules), calls


def test_hooks_of_a_container_run_once_and_in_place() -> None:
    modules, calls = hooked(nn.Linear(2, 2), nn.ReLU())
    fused, rest = fuse_run(modules, lambda is_qat, *parts: nn.Sequential(*parts), is_qat=False)
    fused(torch.randn(1, 2))
    assert calls == ["before 0", "after 0", "before 1", "after 1"]
    assert type(rest) is nn.Identity and not rest._forward_hooks
    assert len(fused._forward_pre_hooks) == len(fused._forward_hooks) == 1


def test_hooks_of_a_folded_layer_run_once() -> None:
    modules, calls = hooked(nn.Linear(2, 2).eval(), nn.BatchNorm1d(2).eval())
    fused, _ = fuse_run(modules, lambda is_qat, *parts: fold_batch_norm(*parts), is_qat=False)
    fused(torch.randn(1, 2))
    assert calls == ["before 0", "after 0", "after 1"]


def test_one_function_on_every_module_is_not_confused() -> None:
    calls: list[str] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        calls.append(type(module).__name__)

    modules = [nn.Linear(2, 2).eval(), nn.BatchNorm1d(2).eval()]
    for module in modules:
        module.register_forward_hook(note)
    fused, _ = fuse_run(modules, lambda is_qat, *parts: fold_batch_norm(*parts), is_qat=False)
    fused(torch.randn(1, 2))
    assert calls == ["Linear", "Linear"]


def test_a_hook_that_is_a_method_keeps_its_object() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.seen: list[torch.Size] = []

        def __call__(self, module: nn.Module, args: Any, output: torch.Tensor) -> None:
            self.seen.append(output.shape)

    recorder = Recorder()
    layer = nn.Linear(2, 2).eval()
    layer.register_forward_hook(recorder)
    fold_batch_norm(layer, nn.BatchNorm1d(2).eval())(torch.randn(1, 2))
    assert recorder.seen == [(1, 2)]


def test_flags_of_hooks_move_along() -> None:
    seen: list[Any] = []
    first, last = nn.Linear(2, 2), nn.ReLU()
    first.register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs), with_kwargs=True)
    last.register_forward_hook(lambda m, args, kwargs, out: seen.append(kwargs), with_kwargs=True)
    last.register_forward_hook(lambda m, args, out: seen.append(out), always_call=True)
    fused, _ = fuse_run([first, last], lambda is_qat, *parts: nn.Sequential(*parts), is_qat=False)
    fused(torch.randn(1, 2))
    assert seen[:2] == [{}, {}] and len(seen) == 3
    with pytest.raises(RuntimeError):
        fused(torch.randn(1, 3))
    assert seen[-1] is None


def test_hooks_stay_where_they_were_when_making_fails() -> None:
    modules, _ = hooked(nn.Linear(2, 2), nn.ReLU())

    def fail(is_qat: bool, *parts: nn.Module) -> nn.Module:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fuse_run(modules, fail, is_qat=False)
    assert all(len(m._forward_pre_hooks) == len(m._forward_hooks) == 1 for m in modules)


@pytest.mark.parametrize("training", [True, False])
def test_the_identities_follow_the_mode_of_the_first(training: bool) -> None:
    modules = [nn.Linear(2, 2).train(training), nn.ReLU(), nn.ReLU()]
    _, *rest = fuse_run(modules, lambda is_qat, *parts: nn.Sequential(*parts), is_qat=False)
    assert [m.training for m in rest] == [training, training]


# --- folding --------------------------------------------------------------------------------------

LAYERS = {
    "linear": (lambda bias: nn.Linear(4, 6, bias=bias), nn.BatchNorm1d, (3, 4)),
    "conv1d": (lambda bias: nn.Conv1d(4, 6, 3, bias=bias, groups=2), nn.BatchNorm1d, (3, 4, 5)),
    "conv2d": (lambda bias: nn.Conv2d(4, 6, 3, bias=bias), nn.BatchNorm2d, (3, 4, 5, 5)),
    "conv3d": (lambda bias: nn.Conv3d(4, 6, 3, bias=bias), nn.BatchNorm3d, (3, 4, 5, 5, 5)),
    "transposed1d": (lambda bias: nn.ConvTranspose1d(4, 6, 3, bias=bias), nn.BatchNorm1d, (3, 4, 5)),
    "transposed2d": (
        lambda bias: nn.ConvTranspose2d(4, 6, 3, bias=bias, groups=2),
        nn.BatchNorm2d,
        (3, 4, 5, 5),
    ),
    "transposed3d": (
        lambda bias: nn.ConvTranspose3d(4, 6, 2, bias=bias, groups=2),
        nn.BatchNorm3d,
        (3, 4, 2, 2, 2),
    ),
}


def observed_norm(make: Any, **options: Any) -> nn.Module:
    norm = make(6, **options)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm.eval()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_folding_keeps_the_function(kind: str, bias: bool, affine: bool) -> None:
    make, norm_type, shape = LAYERS[kind]
    layer, norm = make(bias).eval(), observed_norm(norm_type, affine=affine)
    x = torch.randn(shape)
    before = copy.deepcopy(layer.state_dict())
    folded = fold_batch_norm(layer, norm)
    torch.testing.assert_close(folded(x), norm(layer(x)), rtol=1e-4, atol=1e-5)
    assert type(folded) is type(layer) and not folded.training
    assert all(torch.equal(value, layer.state_dict()[key]) for key, value in before.items())


def test_a_parametrized_layer_is_folded_with_what_it_computes() -> None:
    layer, norm = nn.Linear(4, 6), observed_norm(nn.BatchNorm1d)
    parametrize.register_parametrization(layer, "weight", nn.Softplus())
    folded = fold_batch_norm(layer.eval(), norm)
    x = torch.randn(3, 4)
    torch.testing.assert_close(folded(x), norm(layer(x)))
    assert not parametrize.is_parametrized(folded) and parametrize.is_parametrized(layer)


def test_a_norm_of_batch_statistics_cannot_fold() -> None:
    with pytest.raises(InvalidRequest, match=r"bn\.running_var must not be None: .*track_running"):
        fold_batch_norm(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False))


@pytest.mark.parametrize(
    ("layer", "norm", "message"),
    [
        (nn.Linear(2, 2), nn.BatchNorm1d(3), "Output features of Linear must match num_features of Batch"),
        (nn.Conv1d(2, 2, 1), nn.BatchNorm1d(3), "Output channel of Conv1d must match .* got 2 and 3"),
        (nn.ReLU(), nn.BatchNorm1d(3), "got ReLU and BatchNorm1d"),
        (nn.Linear(2, 2), nn.ReLU(), "got Linear and ReLU"),
    ],
)
def test_widths_must_agree(layer: nn.Module, norm: nn.Module, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        check_widths(layer, norm)
