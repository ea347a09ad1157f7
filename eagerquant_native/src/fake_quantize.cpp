// Rounding to the integer grid per tensor and per channel, and the gradient of that.
#include "grid.h"

#include <vector>

namespace {

template <class T>
int32_t round_tensor(const T* x, T* y, uint32_t* mask, int64_t n, const float* scale, const int32_t* zero_point,
                     int64_t low, int64_t high) {
  const Grid grid(*scale, *zero_point, low, high, kInfinity);
  if (!grid.usable()) return 1;
  expect_writes(y, n * sizeof(T));
  each_run(1, n, [&](int64_t, int64_t at, int64_t count, int64_t word) {
    round_run(x + at, y + at, mask ? mask + word : nullptr, count, grid);
  });
  return 0;
}

// The grids of a row's values, field by field, so that a block of them is read as vectors.
struct Grids {
  std::vector<float> inverse, scale, low, high;

  explicit Grids(const std::vector<Grid>& grids) {
    for (const Grid& grid : grids) {
      inverse.push_back(grid.inverse);
      scale.push_back(grid.scale);
      low.push_back(grid.low);
      high.push_back(grid.high);
    }
  }
  Grid operator[](int64_t i) const {
    Grid grid;
    grid.inverse = inverse[i], grid.scale = scale[i], grid.low = low[i], grid.high = high[i];
    grid.largest = kLargest64;
    return grid;
  }
};

// Part of a row whose values have a grid each, from the `first` of them on. As `round_run`, but apart from it: with one
// template for both, GCC makes this one half again as slow.
template <class T>
void round_columns(const T* __restrict x, T* __restrict y, uint32_t* __restrict mask, int64_t n, const Grids& grids,
                   int64_t first) {
  int64_t at = 0;
  for (; at + kBlock <= n; at += kBlock) {
    uint32_t bits = 0;
    for (int i = 0; i < kBlock; ++i) {
      float value;
      bits |= grids[first + at + i].round(load(x + at + i), &value) ? 1u << i : 0u;
      store(value, y + at + i);
    }
    if (mask) *mask++ = bits;
  }
  if (at == n) return;
  uint32_t bits = 0;
  for (int i = 0; at + i < n; ++i) {
    float value;
    bits |= grids[first + at + i].round(load(x + at + i), &value) ? 1u << i : 0u;
    store(value, y + at + i);
  }
  if (mask) *mask = bits;
}

template <class T>
int32_t round_channels(const T* x, T* y, uint32_t* mask, int64_t outer, int64_t channels, int64_t inner,
                       const float* scale, const int32_t* zero_point, int64_t low, int64_t high) {
  std::vector<Grid> grids(channels);
  for (int64_t c = 0; c < channels; ++c) {
    grids[c] = Grid(scale[c], zero_point[c], low, high, kLargest64);
    if (!grids[c].usable() || !grids[c].holds_zero()) return 1;
  }
  expect_writes(y, outer * channels * inner * sizeof(T));
  if (inner == 1) {
    const Grids columns(grids);
    each_run(outer, channels, [&](int64_t row, int64_t at, int64_t count, int64_t word) {
      const int64_t first = row * channels + at;
      round_columns(x + first, y + first, mask ? mask + word : nullptr, count, columns, at);
    });
    return 0;
  }
  each_run(outer * channels, inner, [&](int64_t row, int64_t at, int64_t count, int64_t word) {
    const int64_t first = row * inner + at;
    round_run(x + first, y + first, mask ? mask + word : nullptr, count, grids[row % channels]);
  });
  return 0;
}

// `Bits` is an unsigned integer as wide as the values: to keep or to clear needs no arithmetic.
template <class Bits>
void keep_run(const Bits* __restrict gradient, const uint32_t* __restrict mask, Bits* __restrict out, int64_t n) {
  int64_t at = 0;
  for (; at + kBlock <= n; at += kBlock) {
    const uint32_t bits = *mask++;
    for (int i = 0; i < kBlock; ++i) out[at + i] = bits & 1u << i ? gradient[at + i] : Bits(0);
  }
  for (int i = 0; at + i < n; ++i) out[at + i] = *mask & 1u << i ? gradient[at + i] : Bits(0);
}

template <class Bits>
void keep(const void* gradient, const uint32_t* mask, void* out, int64_t rows, int64_t length) {
  expect_writes(out, rows * length * sizeof(Bits));
  each_run(rows, length, [&](int64_t row, int64_t at, int64_t count, int64_t word) {
    const int64_t first = row * length + at;
    keep_run(static_cast<const Bits*>(gradient) + first, mask + word, static_cast<Bits*>(out) + first, count);
  });
}

}  // namespace

// Each returns 0; or 1, with nothing changed, where it leaves the work to torch: a grid too far from zero for
// its arithmetic, values or ranges that are not finite.
#define EQ_EXPORTS(suffix, T)                                                                                       \
  EQ_EXPORT int32_t EQ(round_tensor##suffix)(const T* x, T* y, uint32_t* mask, int64_t n, const float* scale,       \
                                             const int32_t* zero_point, int64_t low, int64_t high) {                \
    return round_tensor(x, y, mask, n, scale, zero_point, low, high);                                               \
  }                                                                                                                 \
  EQ_EXPORT int32_t EQ(round_channels##suffix)(const T* x, T* y, uint32_t* mask, int64_t outer, int64_t channels,   \
                                               int64_t inner, const float* scale, const int32_t* zero_point,        \
                                               int64_t low, int64_t high) {                                         \
    return round_channels(x, y, mask, outer, channels, inner, scale, zero_point, low, high);                        \
  }

EQ_EXPORTS(, float)
EQ_EXPORTS(_bfloat16, BFloat16)
EQ_EXPORTS(_half, Half)

// The gradient where the mask says so, zero elsewhere; the number is the width of the values in bits.
EQ_EXPORT void EQ(keep_32)(const void* gradient, const uint32_t* mask, void* out, int64_t rows, int64_t length) {
  keep<uint32_t>(gradient, mask, out, rows, length);
}
EQ_EXPORT void EQ(keep_16)(const void* gradient, const uint32_t* mask, void* out, int64_t rows, int64_t length) {
  keep<uint16_t>(gradient, mask, out, rows, length);
}
