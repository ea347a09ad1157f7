// Between a row-major int8 weight and the block of bytes that pack.h describes.
#include "pack.h"

#include <cstring>

#include "eagerquant.h"

EQ_EXPORT int64_t EQ(pack_size)(int64_t n, int64_t k, int64_t per_channel) {
  return Pack(n, k, per_channel, 0).size();
}

// weight: int8 [n][k]; scales: one, or with per_channel n of them; bias: n values, or null.
EQ_EXPORT void EQ(pack)(const int8_t* weight, const double* scales, const float* bias, int64_t n, int64_t k,
                        int64_t per_channel, void* out) {
  std::memset(out, 0, Pack(n, k, per_channel, 0).at_weights());
  Pack& pack = *static_cast<Pack*>(out);
  pack = Pack(n, k, per_channel, bias != nullptr);
  std::memcpy(pack.scales(), scales, 8 * pack.channels());
  for (int64_t column = 0; column < n; ++column)
    pack.scale()[column] = static_cast<float>(scales[per_channel ? column : 0]);
  if (bias) std::memcpy(pack.bias(), bias, 4 * n);
  const int64_t blocks = pack.columns / 64, block_size = pack.depth * 64;
#pragma omp parallel for num_threads(threads_for(n * k, 1 << 18))
  for (int64_t block = 0; block < blocks; ++block) {
    std::memset(pack.weights() + block * block_size, 0, block_size);
    for (int64_t column = block * 64; column < block * 64 + 64 && column < n; ++column) {
      const int8_t* row = weight + column * k;
      int8_t* to = pack.weights() + pack.place(column, 0);
      int32_t sum = 0;
      for (int64_t input = 0; input < k; ++input) sum += row[input];
      pack.sums()[column] = sum;
      int64_t input = 0;
      for (; input + 4 <= k; input += 4) std::memcpy(to + input * 64, row + input, 4);
      std::memcpy(to + input * 64, row + input, k - input);
    }
  }
}

// weight: int8 [n][k], scales: double [channels], bias: float [n], to be filled.
EQ_EXPORT void EQ(unpack)(const void* from, int8_t* weight, double* scales, float* bias) {
  const Pack& pack = *static_cast<const Pack*>(from);
  std::memcpy(scales, pack.scales(), 8 * pack.channels());
  std::memcpy(bias, pack.bias(), 4 * pack.n);
#pragma omp parallel for num_threads(threads_for(pack.n * pack.k, 1 << 18))
  for (int64_t column = 0; column < pack.n; ++column) {
    const int8_t* source = pack.weights() + pack.place(column, 0);
    int8_t* row = weight + column * pack.k;
    int64_t input = 0;
    for (; input + 4 <= pack.k; input += 4) std::memcpy(row + input, source + input * 64, 4);
    std::memcpy(row + input, source + input * 64, pack.k - input);
  }
}
