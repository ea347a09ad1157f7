"""Two processes on this machine: observers merged over ranks, after which both convert to the same model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import quantization as q
from tests.quantization import ranks


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What `ranks.work` found on each of two ranks; one pair of processes serves all tests."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(ranks.work, args=(2, str(folder)), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    return one == other


@pytest.mark.parametrize("case", ranks.PTQ)
def test_calibration_ends_the_same_on_both_ranks(results, case):
    ours, theirs = (result[case] for result in results)
    assert not all(same(ours["before"][key], theirs["before"][key]) for key in ours["before"])
    assert all(same(ours["after"][key], theirs["after"][key]) for key in ours["after"])
    assert list(ours["converted"]) == list(theirs["converted"])
    assert all(same(ours["converted"][key], theirs["converted"][key]) for key in ours["converted"])
    assert torch.equal(ours["output"], theirs["output"])


def test_running_ranges_are_those_of_one_process_that_saw_it_all(results):
    alone = ranks.calibrated(ranks.PTQ["minmax"], [ranks.batch(0), ranks.batch(1)])
    after = results[0]["minmax"]["after"]
    assert all(same(value, after[key]) for key, value in alone.state_dict().items())


def test_moving_averages_are_the_mean(results):
    key = "0.activation_post_process.max_val"
    values = [result["moving"]["before"][key] for result in results]
    assert torch.equal(results[0]["moving"]["after"][key], torch.stack(values).mean())


def test_histograms_add_up(results):
    after = results[0]["histogram"]["after"]
    before = [result["histogram"]["before"] for result in results]
    name = "0.activation_post_process."
    assert torch.allclose(after[name + "histogram"].sum(), sum(b[name + "histogram"].sum() for b in before))
    assert after[name + "min_val"] == min(b[name + "min_val"] for b in before)
    assert after[name + "max_val"] == max(b[name + "max_val"] for b in before)
    alone = ranks.calibrated(ranks.PTQ["histogram"], [ranks.batch(0), ranks.batch(1)])
    scale = alone[0].activation_post_process.calculate_qparams()[0]
    merged = copy.deepcopy(alone)
    merged.load_state_dict(after)
    assert torch.allclose(merged[0].activation_post_process.calculate_qparams()[0], scale, rtol=0.02)


def test_a_rank_without_data_takes_the_others_ranges(results):
    for result in results:
        assert torch.isfinite(
            result["one sided"]["0.activation_post_process.activation_post_process.min_val"]
        )
        assert result["one sided"]["1.weight_fake_quant.activation_post_process.min_val"].numel() == 3
    assert all(same(value, results[1]["one sided"][key]) for key, value in results[0]["one sided"].items())


@pytest.mark.parametrize("version", ["qat0", "qat1"])
def test_training_in_ddp_converts_to_one_model(results, version):
    ours, theirs = (result[version] for result in results)
    assert all(same(ours["after"][key], theirs["after"][key]) for key in ours["after"])
    assert any(not same(ours["before"][key], theirs["before"][key]) for key in ours["before"])
    assert all(same(ours["converted"][key], theirs["converted"][key]) for key in ours["converted"])
    assert torch.equal(ours["output"], theirs["output"])


@pytest.mark.parametrize("version", ["qat0", "qat1"])
def test_training_goes_on_afterwards_with_the_same_switches(results, version):
    for result in results:
        assert result[version]["loss after"] >= 0
        assert result[version]["switches"] == [(0, 1), (0, 1)]


def test_different_models_are_refused_on_every_rank(results):
    for result in results:
        assert "ranks have different observers" in result["different"]
        assert result["different untouched"]


def test_custom_observers_merge_themselves_or_are_refused(results):
    assert [result["own"] for result in results] == [7.0, 7.0]
    for result in results:
        assert "merge_statistics" in result["unknown"]


def test_without_a_process_group():
    model = nn.Sequential(q.QuantStub()).eval()
    with pytest.raises(q.InvalidRequest, match="init_process_group"):
        q.sync_observers(model)


@pytest.fixture
def lone_rank(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("make", ranks.PTQ.values(), ids=ranks.PTQ)
def test_one_rank_changes_nothing(lone_rank: None, make: Callable[[], q.QConfig]) -> None:
    model = ranks.calibrated(make, [ranks.batch(0)])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    q.sync_observers(model)
    assert all(same(value, before[key]) for key, value in model.state_dict().items())


def test_one_rank_in_ddp_keeps_the_scales_training_had(lone_rank: None) -> None:
    model = DistributedDataParallel(ranks.trainable(1))
    model(ranks.batch(0)).sum().backward()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    q.sync_observers(model)
    assert all(same(value, before[key]) for key, value in model.state_dict().items())
