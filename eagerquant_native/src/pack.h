// A linear weight as the kernels read it: one block of bytes that holds no addresses, so that it can be copied,
// moved and shared as it is. Header, then arrays at 64-byte boundaries:
//   double scales[channels]       as torch keeps them: one, or with per_channel n of them
//   float  scale[columns]         the same in float32, one a column
//   int32  sums[columns]          of the column's weights, for the zero point of the activations
//   float  bias[columns]
//   int8   weights[columns / 64][depth / 4][64][4]
// with columns = n and depth = k, each rounded up (to 64) and filled with zeros. Sixteen columns by four weights are
// one 64-byte operand of VNNI; sixteen of those below each other are one tile of AMX.
#pragma once
#include <cstdint>

namespace {

struct Pack {
  int64_t n, k, per_channel, has_bias;
  int64_t columns, depth;  // n and k, rounded up
  int64_t unused[2];

  static int64_t up(int64_t bytes) { return (bytes + 63) / 64 * 64; }
  int64_t channels() const { return per_channel ? n : 1; }
  int64_t at_scale() const { return 64 + up(8 * channels()); }
  int64_t at_sums() const { return at_scale() + 4 * columns; }
  int64_t at_bias() const { return at_sums() + 4 * columns; }
  int64_t at_weights() const { return at_bias() + 4 * columns; }
  int64_t size() const { return at_weights() + columns * depth; }

  template <typename T>
  T* part(int64_t at) const {
    return reinterpret_cast<T*>(reinterpret_cast<char*>(const_cast<Pack*>(this)) + at);
  }
  double* scales() const { return part<double>(64); }
  float* scale() const { return part<float>(at_scale()); }
  int32_t* sums() const { return part<int32_t>(at_sums()); }
  float* bias() const { return part<float>(at_bias()); }
  int8_t* weights() const { return part<int8_t>(at_weights()); }
  // Where the weight of one column and input is, within weights().
  int64_t place(int64_t column, int64_t input) const {
    return (column / 64 * (depth / 4) + input / 4) * 256 + column % 64 * 4 + input % 4;
  }

  Pack(int64_t n, int64_t k, int64_t per_channel, int64_t has_bias)
      : n(n), k(k), per_channel(per_channel), has_bias(has_bias), columns(up(n)), depth(up(k)), unused{} {}
};
static_assert(sizeof(Pack) == 64, "the header is one cache line");

}  // namespace
