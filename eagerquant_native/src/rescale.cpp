// The gradient of dividing by a factor per channel.
#include "grid.h"

namespace {

void unscale_run(const float* __restrict gradient, const float* __restrict quotient, float factor,
                 float* __restrict by_x, float* __restrict by_factor, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    by_x[i] = gradient[i] / factor;
    by_factor[i] = -gradient[i] * (quotient[i] / factor);
  }
}

void unscale_columns(const float* __restrict gradient, const float* __restrict quotient,
                     const float* __restrict factor, float* __restrict by_x, float* __restrict by_factor, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    by_x[i] = gradient[i] / factor[i];
    by_factor[i] = -gradient[i] * (quotient[i] / factor[i]);
  }
}

}  // namespace

// Of quotient = x / factor: by x into `by_x`, and the values whose sums per channel are that by the factor into
// `by_factor`.
EQ_EXPORT void EQ(unscale)(const float* gradient, const float* quotient, const float* factor, float* by_x,
                           float* by_factor, int64_t outer, int64_t channels, int64_t inner) {
  expect_writes(by_x, outer * channels * inner * sizeof(float));
  if (inner == 1) {
    each_run(outer, channels, [&](int64_t row, int64_t at, int64_t count, int64_t) {
      const int64_t first = row * channels + at;
      unscale_columns(gradient + first, quotient + first, factor + at, by_x + first, by_factor + first, count);
    });
    return;
  }
  each_run(outer * channels, inner, [&](int64_t row, int64_t at, int64_t count, int64_t) {
    const int64_t first = row * inner + at;
    unscale_run(gradient + first, quotient + first, factor[row % channels], by_x + first, by_factor + first, count);
  });
}
