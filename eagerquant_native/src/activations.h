// From float activations to codes: their range, the scale and zero point that follow, and a team of threads that does it.
#pragma once
#include <immintrin.h>

#include <atomic>
#include <cstring>
#include <limits>

#include "eagerquant.h"
#include "pack.h"
#include "qparams.h"

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

}  // namespace
