// Rounding a run of values to the integer grid, in float, and sharing runs out to threads.
//
// A tensor is `rows` runs of `length` values that share a scale and a zero point, each cut into blocks of 32.
// Bit i of a block's word in `mask` says that value i was not clamped: that is all the backward pass needs.
#pragma once
#include "eagerquant.h"

#include <algorithm>
#include <cmath>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "loads.h"
#include "range.h"
#include "stores.h"

namespace {

constexpr int kBlock = 32;
constexpr int64_t kGrain = 1 << 15;
// Adding and subtracting it rounds to the nearest integer, ties to even, what is below 2^22.
constexpr float kRounder = 12582912.0f;
constexpr float kRoundable = 4194304.0f;
// torch's per-channel operators go through int64, where what is larger wraps to the smallest.
constexpr float kLargest64 = 9223371487098961920.0f;

// How a run is rounded. The zero point is taken off the bounds, where it is an integer.
struct Grid {
  float inverse, scale, low, high, largest;

  Grid() = default;
  Grid(float scale, int64_t zero_point, int64_t low, int64_t high, float largest)
      : inverse(1.0f / scale), scale(scale), low(float(low - zero_point)), high(float(high - zero_point)),
        largest(largest) {}
  bool usable() const { return low > -kRoundable && high < kRoundable; }
  // torch's per-channel operator refuses others.
  bool holds_zero() const { return low <= 0 && high >= 0; }
  bool round(float x, float* y) const {
    float value = x * inverse;
    value = value <= largest ? value : low - 1;  // NaN too
    value = value > low - 1 ? value : low - 1;
    value = value < high + 1 ? value : high + 1;
    value = (value + kRounder) - kRounder;
    const float clamped = std::min(std::max(value, low), high);
    *y = clamped * scale;
    return value == clamped;
  }
};

template <class T>
void round_run(const T* __restrict x, T* __restrict y, uint32_t* __restrict mask, int64_t n, const Grid grid) {
  int64_t at = 0;
  for (; at + kBlock <= n; at += kBlock) {
    uint32_t bits = 0;
    for (int i = 0; i < kBlock; ++i) {
      float value;
      bits |= grid.round(load(x + at + i), &value) ? 1u << i : 0u;
      store(value, y + at + i);
    }
    if (mask) *mask++ = bits;
  }
  if (at == n) return;
  uint32_t bits = 0;
  for (int i = 0; at + i < n; ++i) {
    float value;
    bits |= grid.round(load(x + at + i), &value) ? 1u << i : 0u;
    store(value, y + at + i);
  }
  if (mask) *mask = bits;
}

// New memory of this size comes from the system in pages of 4 KB, each a fault that costs more than the
// rounding of its values: ask for large pages.
inline void expect_writes(void* y, int64_t bytes) {
#if defined(__linux__)
  constexpr int64_t kWorthIt = 1 << 24, kPage = 4096;
  if (bytes < kWorthIt) return;
  char* first = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(y) + kPage - 1) / kPage * kPage);
  madvise(first, (static_cast<char*>(y) + bytes - first) / kPage * kPage, MADV_HUGEPAGE);
#endif
}

// Calls f(row, first value in it, how many) for a thread's share of the blocks of all rows.
template <class F>
void each_run(int64_t rows, int64_t length, F f) {
  const int64_t blocks = (length + kBlock - 1) / kBlock;
  const int threads = threads_for(rows * length, kGrain);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const Part part = part_of(rows * blocks, omp_get_thread_num(), omp_get_num_threads());
    for (int64_t at = part.begin; at < part.end;) {
      const int64_t row = at / blocks, first = at % blocks;
      const int64_t end = std::min(blocks, first + part.end - at);
      f(row, first * kBlock, std::min(length, end * kBlock) - first * kBlock, row * blocks + first);
      at += end - first;
    }
  }
}

}  // namespace
