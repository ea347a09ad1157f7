// A statically quantized linear layer: codes to codes, with the bits of torch's FBGEMM operator.
#include <cstdlib>

#include "eagerquant.h"
#include "gemm.h"
#include "requantize.h"

namespace {

struct Grid {
  float scale;
  int32_t zero_point;
};

// Turns the sums of one block of columns into codes.
struct ToCodes {
  const Pack& pack;
  const Grid input, output;
  const int32_t least;
  uint8_t* y;
  int64_t first = 0;  // column of the block
  __m512 multiplier[kPanels], bias[kPanels];
  __m512i shift[kPanels];

  ToCodes(const Pack& pack, Grid input, Grid output, bool relu, uint8_t* y)
      : pack(pack), input(input), output(output), least(relu ? output.zero_point : 0), y(y) {}

  // FBGEMM divides where each column has a scale, and multiplies by the reciprocal where all have one.
  __m512 in_sums(__m512 bias, __m512 of_sums) const {
    return pack.per_channel ? _mm512_div_ps(bias, of_sums)
                            : _mm512_mul_ps(bias, _mm512_div_ps(_mm512_set1_ps(1.0f), of_sums));
  }

  void turn_to(int64_t column) {
    first = column;
    for (int p = 0; p < kPanels; ++p, column += kPanel) {
      // Filled up columns have the scale 0, and their codes are not stored.
      const __m512 of_sums = _mm512_mul_ps(_mm512_set1_ps(input.scale), _mm512_loadu_ps(pack.scale() + column));
      multiplier[p] = _mm512_div_ps(of_sums, _mm512_set1_ps(output.scale));
      bias[p] = pack.has_bias ? in_sums(_mm512_loadu_ps(pack.bias() + column), of_sums) : _mm512_setzero_ps();
      shift[p] = _mm512_mullo_epi32(_mm512_set1_epi32(input.zero_point), _mm512_loadu_si512(pack.sums() + column));
    }
  }

  void row(int64_t m, int64_t column, int count, const int32_t* sums) const {
    uint8_t* to = y + m * pack.n + column;
    for (int i = 0; i < count; ++i, column += kPanel) {
      const int p = static_cast<int>(column - first) / kPanel;
      const __m128i codes = requantized(_mm512_load_si512(sums + i * kPanel), shift[p], bias[p], multiplier[p],
                                        output.zero_point, least);
      if (column + kPanel <= pack.n)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i * kPanel), codes);
      else if (column < pack.n)
        _mm_mask_storeu_epi8(to + i * kPanel, (1u << (pack.n - column)) - 1, codes);
    }
  }
};

}  // namespace

// y[rows][n] from x[rows][k], both codes. Returns 0, or 1 and leaves y alone if there is no memory.
EQ_EXPORT int32_t EQ(linear_static)(const void* packed, const uint8_t* x, int64_t rows, float x_scale, int64_t x_zero,
                                    float y_scale, int64_t y_zero, int64_t relu, uint8_t* y) {
  const Pack& pack = *static_cast<const Pack*>(packed);
  const Grid input{x_scale, static_cast<int32_t>(x_zero)}, output{y_scale, static_cast<int32_t>(y_zero)};
  const int64_t stride = pack.depth + 64;
  uint8_t* codes = static_cast<uint8_t*>(std::aligned_alloc(64, (rows + 15) / 16 * 16 * stride));
  if (!codes) return 1;
#pragma omp parallel num_threads(threads_for(rows * pack.columns * pack.depth, 1 << 18))
  {
    const TilesOn tiles;
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    const Part own = part_of(rows, thread, threads);
    for (int64_t m = own.begin; m < own.end; ++m) {
      std::memcpy(codes + m * stride, x + m * pack.k, pack.k);
      std::memset(codes + m * stride + pack.k, 0, pack.depth - pack.k);
    }
#pragma omp barrier
    ToCodes epilogue(pack, input, output, relu, y);
    by_stripes(codes, stride, pack, rows, thread, threads, epilogue);
  }
  std::free(codes);
  return 0;
}
