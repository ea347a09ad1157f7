"""Kinds of quantization and the facts of a qconfig: the whole grid of dtypes against torch.ao."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any

import pytest
import torch
from torch import nn

from observers import PlaceholderObserver
from quantization import quant_type
from quantization.errors import InvalidRequest
from quantization.qconfig import QConfig, _default_quint8_placeholder_qconfig, default_qconfig
from quantization.quant_type import QuantType

DTYPES = (
    *(torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4),
    *(torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32),
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fn),
)
QUESTIONS = (
    "activation_dtype",
    "weight_dtype",
    "activation_is_statically_quantized",
    "activation_is_dynamically_quantized",
    "activation_is_int8_quantized",
    "activation_is_int32_quantized",
    "weight_is_quantized",
    "weight_is_statically_quantized",
    "op_is_int8_dynamically_quantized",
    "get_qconfig_dtypes",
    "get_quant_type",
)


def test_the_numbers_are_those_of_torchscript() -> None:
    assert issubclass(QuantType, IntEnum)
    assert {kind.name: int(kind) for kind in QuantType} == {
        "DYNAMIC": 0,
        "STATIC": 1,
        "QAT": 2,
        "WEIGHT_ONLY": 3,
    }


@pytest.mark.parametrize("kind", QuantType)
def test_names_go_there_and_back(kind: QuantType) -> None:
    theirs = pytest.importorskip("torch.ao.quantization.quant_type")
    name = quant_type._get_quant_type_to_str(kind)
    assert name == theirs._get_quant_type_to_str(theirs.QuantType(int(kind)))
    assert quant_type._quant_type_from_str(name) is kind


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"Unknown QuantType name 'bla', expected one of \['dynamic'"):
        quant_type._quant_type_from_str("bla")


def answer(ask: Callable[[Any], Any], qconfig: Any) -> Any:
    try:
        return ask(qconfig)
    except Exception:
        return "error"


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
def test_every_pair_of_dtypes_is_answered_as_in_torch_ao(question: str, is_dynamic: bool) -> None:
    ao = pytest.importorskip("torch.ao.quantization")
    theirs = getattr(pytest.importorskip("torch.ao.quantization.utils"), question)
    ours = getattr(quant_type, question)
    different: list[Any] = []
    for activation in DTYPES:
        for weight in DTYPES:
            pair = [
                qconfig(
                    activation=placeholder.with_args(dtype=activation, is_dynamic=is_dynamic),
                    weight=placeholder.with_args(dtype=weight),
                )
                for qconfig, placeholder in (
                    (QConfig, PlaceholderObserver),
                    (ao.QConfig, ao.PlaceholderObserver),
                )
            ]
            if answer(ours, pair[0]) != answer(theirs, pair[1]):
                different.append((activation, weight))
    assert different == []


@pytest.mark.parametrize("question", QUESTIONS)
def test_no_qconfig_is_refused(question: str) -> None:
    with pytest.raises(InvalidRequest, match=r"qconfig must be provided to .*, got None"):
        getattr(quant_type, question)(None)


def test_a_factory_without_dtype_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"qconfig\.weight makes Identity, which has no dtype"):
        quant_type.weight_dtype(QConfig(default_qconfig.activation, nn.Identity))
    with pytest.raises(InvalidRequest, match=r"qconfig\.weight makes NoneType"):
        quant_type.weight_dtype(_default_quint8_placeholder_qconfig)


def test_dtypes_without_a_kind_are_refused() -> None:
    activation = PlaceholderObserver.with_args(dtype=torch.float32)
    with pytest.raises(InvalidRequest, match=r"Unrecognized dtype combination.*activation\(torch\.float32\)"):
        quant_type.get_quant_type(QConfig(activation, activation))
