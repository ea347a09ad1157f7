// A dynamically quantized linear layer in one pass: find the range of the activations, quantize them, multiply,
// and scale back to float. Per tensor the numbers are those of torch's FBGEMM operator, bit for bit.
#include "activations.h"
#include "gemm.h"

#include <cstdlib>

namespace {

// Scales the sums of one block of columns back to float.
template <bool per_row>
struct ToFloat {
  const Pack& pack;
  const QParams* qparams;  // one, or one a row
  const float least;       // 0 with ReLU
  float* y;
  int64_t first = 0;  // column of the block
  __m512 scale[kPanels], bias[kPanels];
  __m512i offset[kPanels];  // what the zero point adds to a sum, if it is one for all rows; else its factor

  ToFloat(const Pack& pack, const QParams* qparams, float least, float* y)
      : pack(pack), qparams(qparams), least(least), y(y) {}

  void turn_to(int64_t column) {
    first = column;
    const __m512i zero_point = _mm512_set1_epi32(per_row ? 1 : qparams[0].zero_point);
    const __m512 of_input = _mm512_set1_ps(per_row ? 1.0f : qparams[0].scale);
    for (int p = 0; p < kPanels; ++p, column += kPanel) {
      scale[p] = _mm512_mul_ps(of_input, _mm512_loadu_ps(pack.scale() + column));
      bias[p] = _mm512_loadu_ps(pack.bias() + column);
      offset[p] = _mm512_mullo_epi32(zero_point, _mm512_loadu_si512(pack.sums() + column));
    }
  }

  void row(int64_t m, int64_t column, int count, const int32_t* sums) const {
    float* to = y + m * pack.n + column;
    for (int i = 0; i < count; ++i, column += kPanel) {
      const int p = static_cast<int>(column - first) / kPanel;
      __m512i shift = offset[p];
      __m512 factor = scale[p];
      if (per_row) {
        shift = _mm512_mullo_epi32(_mm512_set1_epi32(qparams[m].zero_point), shift);
        factor = _mm512_mul_ps(_mm512_set1_ps(qparams[m].scale), factor);
      }
      const __m512 v = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_load_si512(sums + i * kPanel), shift));
      // Fused, as FBGEMM's compiler has it; without a bias there is nothing to add, not even 0.
      const __m512 scaled = pack.has_bias ? _mm512_fmadd_ps(v, factor, bias[p]) : _mm512_mul_ps(v, factor);
      const __m512 result = _mm512_max_ps(scaled, _mm512_set1_ps(least));
      if (column + kPanel <= pack.n)
        _mm512_storeu_ps(to + i * kPanel, result);
      else if (column < pack.n)
        _mm512_mask_storeu_ps(to + i * kPanel, (1u << (pack.n - column)) - 1, result);
    }
  }
};

template <bool per_row>
void multiply(const Call& call, const Quantized& input, Team team) {
  const float least = call.flags & kRelu ? 0.0f : -std::numeric_limits<float>::infinity();
  ToFloat<per_row> epilogue(call.pack, input.qparams, least, call.y);
  by_stripes(input.codes, Quantized::stride(call), call.pack, call.rows, team.thread, team.threads, epilogue);
}

void multiply(const Call& call, const Quantized& input, Team team) {
  call.per_row() ? multiply<true>(call, input, team) : multiply<false>(call, input, team);
}

}  // namespace

// y[rows][n] = x[rows][k] times the packed weight. Returns 0, or 1 and leaves y alone if x is not finite or there is
// no memory.
EQ_EXPORT int32_t EQ(linear_dynamic)(const void* pack, const float* x, int64_t rows, int64_t flags, float* y) {
  const Call call{*static_cast<const Pack*>(pack), x, rows, flags, y};
  int threads = threads_for(rows * call.pack.columns * call.pack.depth, 1 << 18);
  if (threads > kMostThreads) threads = kMostThreads;
  // Of little input every thread makes all the codes itself, which is faster than to wait for one another.
  const bool apart = rows * call.pack.k <= 16384;
  const int64_t bytes = Quantized::size(call);
  uint8_t* memory = static_cast<uint8_t*>(std::aligned_alloc(64, bytes * (apart ? threads : 1)));
  if (!memory) return 1;
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
