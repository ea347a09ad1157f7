"""Observers and fake quantizers: what they saw, and the scale and zero point that follow from it.

The names are those of `torch.ao.quantization.observer`, `.fake_quantize` and `._learnable_fake_quantize`.
"""

from __future__ import annotations

from observers.base import (
    ObserverBase as ObserverBase,
    UniformQuantizationObserverBase as UniformQuantizationObserverBase,
    _ObserverBase as _ObserverBase,
    calculate_qmin_qmax as calculate_qmin_qmax,
    check_min_max_valid as check_min_max_valid,
    determine_qparams as determine_qparams,
    validate_qmin_qmax as validate_qmin_qmax,
)
from observers.defaults import (
    default_affine_fixed_qparams_fake_quant as default_affine_fixed_qparams_fake_quant,
    default_affine_fixed_qparams_observer as default_affine_fixed_qparams_observer,
    default_debug_observer as default_debug_observer,
    default_dynamic_fake_quant as default_dynamic_fake_quant,
    default_dynamic_quant_observer as default_dynamic_quant_observer,
    default_embedding_fake_quant as default_embedding_fake_quant,
    default_embedding_fake_quant_4bit as default_embedding_fake_quant_4bit,
    default_fake_quant as default_fake_quant,
    default_fixed_qparams_range_0to1_fake_quant as default_fixed_qparams_range_0to1_fake_quant,
    default_fixed_qparams_range_0to1_observer as default_fixed_qparams_range_0to1_observer,
    default_fixed_qparams_range_neg1to1_fake_quant as default_fixed_qparams_range_neg1to1_fake_quant,
    default_fixed_qparams_range_neg1to1_observer as default_fixed_qparams_range_neg1to1_observer,
    default_float_qparams_observer as default_float_qparams_observer,
    default_float_qparams_observer_4bit as default_float_qparams_observer_4bit,
    default_fused_act_fake_quant as default_fused_act_fake_quant,
    default_fused_per_channel_wt_fake_quant as default_fused_per_channel_wt_fake_quant,
    default_fused_wt_fake_quant as default_fused_wt_fake_quant,
    default_histogram_fake_quant as default_histogram_fake_quant,
    default_histogram_observer as default_histogram_observer,
    default_observer as default_observer,
    default_per_channel_weight_fake_quant as default_per_channel_weight_fake_quant,
    default_per_channel_weight_observer as default_per_channel_weight_observer,
    default_placeholder_observer as default_placeholder_observer,
    default_reuse_input_observer as default_reuse_input_observer,
    default_symmetric_fixed_qparams_fake_quant as default_symmetric_fixed_qparams_fake_quant,
    default_symmetric_fixed_qparams_observer as default_symmetric_fixed_qparams_observer,
    default_weight_fake_quant as default_weight_fake_quant,
    default_weight_observer as default_weight_observer,
    fused_per_channel_wt_fake_quant_range_neg_127_to_127 as fused_per_channel_wt_fake_quant_range_neg_127_to_127,
    fused_wt_fake_quant_range_neg_127_to_127 as fused_wt_fake_quant_range_neg_127_to_127,
    per_channel_weight_observer_range_neg_127_to_127 as per_channel_weight_observer_range_neg_127_to_127,
    weight_observer_range_neg_127_to_127 as weight_observer_range_neg_127_to_127,
)
from observers.dtypes import (
    is_float_qparams as is_float_qparams,
    is_per_channel as is_per_channel,
    is_per_tensor as is_per_tensor,
    is_symmetric as is_symmetric,
    to_underlying_dtype as to_underlying_dtype,
)
from observers.errors import (
    InvalidRequest as InvalidRequest,
    QuantizationError as QuantizationError,
    QuantizationWarning as QuantizationWarning,
    Unsupported as Unsupported,
)
from observers.factory import (
    _PartialWrapper as _PartialWrapper,
    _with_args as _with_args,
    _with_callable_args as _with_callable_args,
    factories_equal as factories_equal,
)
from observers.fake_quantize import (
    FakeQuantize as FakeQuantize,
    FakeQuantizeBase as FakeQuantizeBase,
    FixedQParamsFakeQuantize as FixedQParamsFakeQuantize,
    FusedMovingAvgObsFakeQuantize as FusedMovingAvgObsFakeQuantize,
    _is_float_qparams as _is_float_qparams,
    _is_per_channel as _is_per_channel,
    _is_per_tensor as _is_per_tensor,
    _is_symmetric_quant as _is_symmetric_quant,
)
from observers.granularity import (
    AffineQuantizedObserverBase as AffineQuantizedObserverBase,
    Granularity as Granularity,
    MappingType as MappingType,
    PerAxis as PerAxis,
    PerBlock as PerBlock,
    PerGroup as PerGroup,
    PerRow as PerRow,
    PerTensor as PerTensor,
    PerToken as PerToken,
    TorchAODType as TorchAODType,
    ZeroPointDomain as ZeroPointDomain,
    get_block_size as get_block_size,
)
from observers.histogram import HistogramObserver as HistogramObserver
from observers.learnable import _LearnableFakeQuantize as _LearnableFakeQuantize
from observers.minmax import (
    MinMaxObserver as MinMaxObserver,
    MovingAverageMinMaxObserver as MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver as MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver as PerChannelMinMaxObserver,
)
from observers.passive import (
    FixedQParamsObserver as FixedQParamsObserver,
    NoopObserver as NoopObserver,
    PlaceholderObserver as PlaceholderObserver,
    RecordingObserver as RecordingObserver,
    ReuseInputObserver as ReuseInputObserver,
    _DerivedObserverOrFakeQuantize as _DerivedObserverOrFakeQuantize,
)
from observers.state import (
    _is_activation_post_process as _is_activation_post_process,
    _is_fake_quant_script_module as _is_fake_quant_script_module,
    _is_observer_script_module as _is_observer_script_module,
    _is_per_channel_script_obs_instance as _is_per_channel_script_obs_instance,
    disable_fake_quant as disable_fake_quant,
    disable_observer as disable_observer,
    enable_fake_quant as enable_fake_quant,
    enable_observer as enable_observer,
    get_observer_state_dict as get_observer_state_dict,
    has_seen_data as has_seen_data,
    load_observer_state_dict as load_observer_state_dict,
)

ObserverOrFakeQuantize = ObserverBase | FakeQuantizeBase
