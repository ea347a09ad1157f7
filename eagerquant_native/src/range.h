// The smallest and the largest value of a run of memory, in one read.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "eagerquant.h"
#include "loads.h"

namespace {

constexpr int kLanes = 64;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

template <class T>
inline T smaller(T a, T b) {
  return a < b ? a : b;
}
template <class T>
inline T larger(T a, T b) {
  return a > b ? a : b;
}

// The bits of |x| are ordered as |x| is, with infinity and then NaN above all numbers.
inline int32_t size_of(float x) { return bits_of(x) & 0x7fffffff; }
constexpr int32_t kInfiniteSize = 0x7f800000;

struct Range {
  float low = kInfinity, high = -kInfinity;  // of what is no NaN
  int32_t size = 0;                          // the largest size_of

  void add(float value) {
    low = smaller(value, low);
    high = larger(value, high);
    size = larger(size_of(value), size);
  }
  void add(const Range& other) {
    low = smaller(other.low, low);
    high = larger(other.high, high);
    size = larger(other.size, size);
  }
  bool has_nan() const { return size > kInfiniteSize; }
  bool is_finite() const { return size < kInfiniteSize; }
  void store(float* to_low, float* to_high) const {
    *to_low = has_nan() ? std::numeric_limits<float>::quiet_NaN() : low;
    *to_high = has_nan() ? std::numeric_limits<float>::quiet_NaN() : high;
  }
};

// The moving average of a range, which starts with the first one.
inline void average(float* low, float* high, float batch_low, float batch_high, float constant) {
  const bool first = std::isinf(*low) || std::isinf(*high);
  *low = first ? batch_low : *low + constant * (batch_low - *low);
  *high = first ? batch_high : *high + constant * (batch_high - *high);
}

// `kLanes` independent ranges side by side, so that no step waits for the one before.
template <class T>
Range range_of(const T* x, int64_t n) {
  Range found;
  int64_t at = 0;
  if (n >= kLanes) {
    float lows[kLanes], highs[kLanes];
    int32_t sizes[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      lows[i] = kInfinity;
      highs[i] = -kInfinity;
      sizes[i] = 0;
    }
    for (; at + kLanes <= n; at += kLanes) {
      for (int i = 0; i < kLanes; ++i) {
        const float value = load(x + at + i);
        lows[i] = smaller(value, lows[i]);
        highs[i] = larger(value, highs[i]);
        sizes[i] = larger(size_of(value), sizes[i]);
      }
    }
    for (int i = 0; i < kLanes; ++i) found.add({lows[i], highs[i], sizes[i]});
  }
  for (; at < n; ++at) found.add(load(x + at));
  return found;
}

// The same by several threads, for `grain` values each.
template <class T>
Range range_of(const T* x, int64_t n, int64_t grain) {
  const int threads = threads_for(n, grain);
  std::vector<Range> found(threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const Part part = part_of(n, omp_get_thread_num(), omp_get_num_threads(), kLanes);
    found[omp_get_thread_num()] = range_of(x + part.begin, part.end - part.begin);
  }
  for (int i = 1; i < threads; ++i) found[0].add(found[i]);
  return found[0];
}

}  // namespace
