// Scale and zero point of a range of activations, as torch's dynamic operators choose them.
#pragma once
#include <cmath>

namespace {

struct QParams {
  float scale;
  int32_t zero_point;
};

// Codes from 0 to qmax; the range is widened to hold zero. Both ends must be finite.
inline QParams qparams_of(float low, float high, int32_t qmax) {
  low = low < 0 ? low : 0;
  high = high > 0 ? high : 0;
  double scale = (static_cast<double>(high) - low) / qmax;
  if (static_cast<float>(scale) == 0.0f || std::isinf(1.0f / static_cast<float>(scale))) scale = 0.1;
  constexpr float kSmallest = 6.1e-5f;
  if (scale < kSmallest) {
    const float before = static_cast<float>(scale);
    scale = kSmallest;
    if (low == 0.0f) {
      high = kSmallest * qmax;
    } else if (high == 0.0f) {
      low = -kSmallest * qmax;
    } else {
      const float wider = kSmallest / before;
      low *= wider;
      high *= wider;
    }
  }
  // Of the two ends, the one that the scale expresses with the smaller error decides.
  const double from_low = 0 - low / scale, from_high = qmax - high / scale;
  const double low_error = std::fabs(low / scale), high_error = qmax + std::fabs(high / scale);
  const double zero_point = low_error < high_error ? from_low : from_high;
  const int32_t nudged = zero_point < 0 ? 0 : zero_point > qmax ? qmax : static_cast<int32_t>(std::nearbyint(zero_point));
  return {static_cast<float>(scale), nudged};
}

}  // namespace
