// A dynamically quantized linear layer in one pass: find the range of the activations, quantize them, multiply,
// and scale back to float. Per tensor the numbers are those of torch's FBGEMM operator, bit for bit.
#include "activations.h"
#include "gemm.h"

#include <cstdlib>

namespace {

struct ToFloat {
  const Pack& pack;
  const QParams* qparams;  // one, or one a row
  int64_t qparams_step;
  float least;  // 0 with ReLU
  float* y;

  void row(int64_t m, int64_t column, int count, const __m512i* sums) {
    const QParams& of_row = qparams[m * qparams_step];
    const __m512i zero_point = _mm512_set1_epi32(of_row.zero_point);
    const __m512 scale = _mm512_set1_ps(of_row.scale), bottom = _mm512_set1_ps(least);
    for (int p = 0; p < count; ++p, column += kPanel) {
      if (column >= pack.n) return;
      const __mmask16 there = pack.n - column >= kPanel ? 0xffff : (1u << (pack.n - column)) - 1;
      const __m512i offset = _mm512_mullo_epi32(zero_point, _mm512_loadu_si512(pack.sums() + column));
      __m512 v = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[p], offset));
      const __m512 product = _mm512_mul_ps(scale, _mm512_loadu_ps(pack.scale() + column));
      v = pack.has_bias ? _mm512_fmadd_ps(v, product, _mm512_loadu_ps(pack.bias() + column))
                        : _mm512_mul_ps(v, product);
      _mm512_mask_storeu_ps(y + m * pack.n + column, there, _mm512_max_ps(v, bottom));
    }
  }
};

// Blocks of 64 columns by up to kRows rows; the weights of one block stay in the cache for all rows.
void multiply(const Call& call, const Quantized& input, Team team) {
  constexpr int64_t kRows = 96;
  ToFloat epilogue{call.pack, input.qparams, call.per_row() ? 1 : 0,
                   call.flags & kRelu ? 0.0f : -std::numeric_limits<float>::infinity(), call.y};
  const int64_t stripes = (call.rows + kRows - 1) / kRows, blocks = call.pack.columns / kColumns;
  const Part part = team.part_of(stripes * blocks);
  for (int64_t i = part.begin; i < part.end; ++i) {
    const int64_t begin = i % stripes * kRows, end = begin + kRows < call.rows ? begin + kRows : call.rows;
    block(input.codes, Quantized::stride(call), call.pack, begin, end, i / stripes * kColumns, epilogue);
  }
}

}  // namespace

// y[rows][n] = x[rows][k] times the packed weight. Returns 0, or 1 and leaves y alone if x is not finite.
EQ_EXPORT int32_t EQ(linear_dynamic)(const void* pack, const float* x, int64_t rows, int64_t flags, float* y) {
  const Call call{*static_cast<const Pack*>(pack), x, rows, flags, y};
  int threads = threads_for(rows * call.pack.columns * call.pack.depth, 1 << 18);
  if (threads > kMostThreads) threads = kMostThreads;
  // Of little input every thread makes all the codes itself, which is faster than to wait for one another.
  const bool apart = rows * call.pack.k <= 16384;
  const int64_t bytes = Quantized::size(call);
  uint8_t* memory = static_cast<uint8_t*>(std::aligned_alloc(64, bytes * (apart ? threads : 1)));
  Quantized shared(call, memory);
  bool finite = true;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const TilesOn tiles;
    const Team team{omp_get_thread_num(), omp_get_num_threads()};
    if (apart) {
      Quantized own(call, memory + bytes * team.thread);
      if (own.fill(call, {0, 1})) multiply(call, own, team);
      else finite = false;
    } else if (shared.fill(call, team)) {
      multiply(call, shared, team);
    } else {
      finite = false;
    }
  }
  std::free(memory);
  return finite ? 0 : 1;
}
