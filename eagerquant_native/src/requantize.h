// From sums to the codes of a quantized output, as torch's FBGEMM operators do it, bit for bit.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace {

// Of 16 columns. shift: what the input's zero point adds to the sums; bias: in units of sums; multiplier: the
// scales of input and weight over that of the output. `least` is 0, or with ReLU the zero point.
inline __m128i requantized(__m512i sums, __m512i shift, __m512 bias, __m512 multiplier, int32_t zero_point,
                           int32_t least) {
  __m512 v = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums, shift));
  v = _mm512_mul_ps(_mm512_add_ps(v, bias), multiplier);
  v = _mm512_min_ps(v, _mm512_set1_ps(static_cast<float>(255 - zero_point)));
  const __m512i code = _mm512_add_epi32(_mm512_cvtps_epi32(v), _mm512_set1_epi32(zero_point));
  return _mm512_cvtusepi32_epi8(_mm512_max_epi32(code, _mm512_set1_epi32(least)));
}

}  // namespace
