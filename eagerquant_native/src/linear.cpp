// A dynamically quantized linear layer in one pass: find the range of the activations, quantize them, multiply,
// and scale back to float. Per tensor the numbers are those of torch's FBGEMM operator, bit for bit.
#include "eagerquant.h"
#include "gemm.h"
#include "qparams.h"

#include <atomic>
#include <cstdlib>
#include <limits>

namespace {

// What the caller asks for, as bits.
constexpr int64_t kReduceRange = 1;  // codes up to 127, as torch's dynamic layers use
constexpr int64_t kPerRow = 2;       // a range of its own for each row
constexpr int64_t kRelu = 4;

struct Range {
  float low = std::numeric_limits<float>::infinity(), high = -std::numeric_limits<float>::infinity();
  bool finite() const { return std::isfinite(low) && std::isfinite(high); }
};

// NaN anywhere makes both ends NaN.
Range range_of(const float* x, int64_t n) {
  Range range;
  __m512 low[4], high[4];
  __mmask16 poison = 0;
  for (int i = 0; i < 4; ++i) {
    low[i] = _mm512_set1_ps(range.low);
    high[i] = _mm512_set1_ps(range.high);
  }
  int64_t at = 0;
  for (; at + 64 <= n; at += 64) {
    for (int i = 0; i < 4; ++i) {
      const __m512 v = _mm512_loadu_ps(x + at + 16 * i);
      low[i] = _mm512_min_ps(v, low[i]);
      high[i] = _mm512_max_ps(v, high[i]);
      poison |= _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    }
  }
  for (; at < n; at += 16) {
    const __mmask16 there = n - at >= 16 ? 0xffff : (1u << (n - at)) - 1;
    const __m512 v = _mm512_mask_loadu_ps(_mm512_set1_ps(x[at]), there, x + at);
    low[0] = _mm512_min_ps(v, low[0]);
    high[0] = _mm512_max_ps(v, high[0]);
    poison |= _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  }
  for (int i = 1; i < 4; ++i) {
    low[0] = _mm512_min_ps(low[i], low[0]);
    high[0] = _mm512_max_ps(high[i], high[0]);
  }
  range.low = poison ? std::numeric_limits<float>::quiet_NaN() : _mm512_reduce_min_ps(low[0]);
  range.high = poison ? range.low : _mm512_reduce_max_ps(high[0]);
  return range;
}

void quantize(const float* x, int64_t n, QParams qparams, uint8_t* out) {
  const __m512 inverse = _mm512_set1_ps(1.0f / qparams.scale);
  const __m512 zero_point = _mm512_set1_ps(static_cast<float>(qparams.zero_point));
  for (int64_t at = 0; at < n; at += 16) {
    const __mmask16 there = n - at >= 16 ? 0xffff : (1u << (n - at)) - 1;
    const __m512 v = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(there, x + at), inverse, zero_point);
    const __m512i code = _mm512_max_epi32(_mm512_cvtps_epi32(v), _mm512_setzero_si512());
    _mm_mask_storeu_epi8(out + at, there, _mm512_cvtusepi32_epi8(code));
  }
}

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

constexpr int kMostThreads = 256;

// The threads that do one thing together; one alone waits for nobody.
struct Team {
  int thread, threads;
  void wait() const {
    if (threads > 1) {
#pragma omp barrier
    }
  }
  Part part_of(int64_t n) const { return ::part_of(n, thread, threads); }
};

struct Call {
  const Pack& pack;
  const float* x;
  int64_t rows, flags;
  float* y;
  bool per_row() const { return flags & kPerRow; }
  int32_t qmax() const { return flags & kReduceRange ? 127 : 255; }
};

// What a team makes of the activations.
struct Quantized {
  uint8_t* codes;  // [rows rounded up to 16][stride]
  QParams* qparams;
  Range ranges[kMostThreads];
  std::atomic<bool> finite{true};

  // Rows that are a power of two apart would fall on the same few lines of the cache.
  static int64_t stride(const Call& call) { return call.pack.depth + 64; }
  static int64_t codes_size(const Call& call) { return (call.rows + 15) / 16 * 16 * stride(call); }
  static int64_t size(const Call& call) { return codes_size(call) + Pack::up(sizeof(QParams) * call.rows); }
  Quantized(const Call& call, uint8_t* memory)
      : codes(memory), qparams(reinterpret_cast<QParams*>(memory + codes_size(call))) {}

  // False if the activations hold NaN or infinity; then there are no codes.
  bool fill(const Call& call, Team team) {
    const Part part = team.part_of(call.rows);
    call.per_row() ? fill_by_row(call, part) : fill_as_one(call, part, team);
    team.wait();
    return finite;
  }

 private:
  void encode(const Call& call, int64_t m, QParams how) {
    const int64_t k = call.pack.k;
    uint8_t* to = codes + m * stride(call);
    quantize(call.x + m * k, k, how, to);
    std::memset(to + k, 0, call.pack.depth - k);
  }

  void fill_by_row(const Call& call, Part part) {
    for (int64_t m = part.begin; m < part.end; ++m) {
      const Range range = range_of(call.x + m * call.pack.k, call.pack.k);
      if (!range.finite()) finite = false;
      else encode(call, m, qparams[m] = qparams_of(range.low, range.high, call.qmax()));
    }
  }

  void fill_as_one(const Call& call, Part part, Team team) {
    const int64_t k = call.pack.k;
    ranges[team.thread] = range_of(call.x + part.begin * k, (part.end - part.begin) * k);
    team.wait();
    Range all;
    for (int t = 0; t < team.threads; ++t) {
      const Range& range = ranges[t];
      if (std::isnan(range.low)) finite = false;
      all.low = range.low < all.low ? range.low : all.low;
      all.high = range.high > all.high ? range.high : all.high;
    }
    if (!all.finite()) finite = false;
    if (!finite) return;
    const QParams how = qparams_of(all.low, all.high, call.qmax());
    if (team.thread == 0) qparams[0] = how;
    for (int64_t m = part.begin; m < part.end; ++m) encode(call, m, how);
  }
};

// Blocks of 64 columns by up to kRows rows; the weights of one block stay in the cache for all rows.
template <bool per_row>
void multiply(const Call& call, const Quantized& input, Team team) {
  constexpr int64_t kRows = 96;
  const float least = call.flags & kRelu ? 0.0f : -std::numeric_limits<float>::infinity();
  ToFloat<per_row> epilogue(call.pack, input.qparams, least, call.y);
  const int64_t stripes = (call.rows + kRows - 1) / kRows, blocks = call.pack.columns / kColumns;
  const Part part = team.part_of(stripes * blocks);
  for (int64_t i = part.begin; i < part.end; ++i) {
    const int64_t begin = i % stripes * kRows, end = begin + kRows < call.rows ? begin + kRows : call.rows;
    const int64_t column = i / stripes * kColumns;
    if (i == part.begin || begin == 0) epilogue.turn_to(column);
    block(input.codes, Quantized::stride(call), call.pack, begin, end, column, epilogue);
  }
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
