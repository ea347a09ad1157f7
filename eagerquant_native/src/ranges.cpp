// The smallest and the largest value of a tensor, NaN if it holds one.
#include "eagerquant.h"

#include <cmath>
#include <limits>

namespace {

constexpr int kLanes = 64;

// One read, `kLanes` independent minima and maxima. NaN is found by the difference, which it poisons.
void range_of(const float* x, int64_t n, float* low, float* high, float* poison) {
  float lows[kLanes], highs[kLanes], sums[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    lows[i] = std::numeric_limits<float>::infinity();
    highs[i] = -lows[i];
    sums[i] = 0;
  }
  int64_t at = 0;
  for (; at + kLanes <= n; at += kLanes) {
    for (int i = 0; i < kLanes; ++i) {
      const float value = x[at + i];
      lows[i] = value < lows[i] ? value : lows[i];
      highs[i] = value > highs[i] ? value : highs[i];
      sums[i] += value == value ? 0.0f : 1.0f;
    }
  }
  for (; at < n; ++at) {
    lows[0] = x[at] < lows[0] ? x[at] : lows[0];
    highs[0] = x[at] > highs[0] ? x[at] : highs[0];
    sums[0] += x[at] == x[at] ? 0.0f : 1.0f;
  }
  for (int i = 1; i < kLanes; ++i) {
    lows[0] = lows[i] < lows[0] ? lows[i] : lows[0];
    highs[0] = highs[i] > highs[0] ? highs[i] : highs[0];
    sums[0] += sums[i];
  }
  *low = lows[0];
  *high = highs[0];
  *poison = sums[0];
}

}  // namespace

// out[0], out[1]: smallest and largest of the n > 0 values of x, both NaN if any is.
EQ_EXPORT void EQ(range)(const float* x, int64_t n, float* out) {
  const int threads = threads_for(n, 1 << 16);
  float low = std::numeric_limits<float>::infinity(), high = -low, poison = 0;
#pragma omp parallel num_threads(threads) reduction(min : low) reduction(max : high) reduction(+ : poison) \
    if (threads > 1)
  {
    const Part part = part_of(n, omp_get_thread_num(), omp_get_num_threads(), kLanes);
    range_of(x + part.begin, part.end - part.begin, &low, &high, &poison);
  }
  out[0] = poison > 0 ? std::numeric_limits<float>::quiet_NaN() : low;
  out[1] = poison > 0 ? std::numeric_limits<float>::quiet_NaN() : high;
}
