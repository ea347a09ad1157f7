// sigmoid and tanh of sixteen values, within 3 units in the last place of the exact ones. NaN stays NaN.
#pragma once
#include <immintrin.h>

namespace {

// exp(x) = power * (1 + rest), where power is a power of two and rest is small and exact to its own last place.
struct Exponential {
  __m512 power, rest;
};

inline Exponential exponential(__m512 x) {
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
  // log(2) in two parts, of which the first times n is exact.
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  // (exp(r) - 1 - r) / r^2 for |r| <= log(2) / 2, fitted at Chebyshev's points.
  __m512 p = _mm512_set1_ps(0.0013941121f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.008369158f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.04166635f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.16666505f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
  return {_mm512_scalef_ps(_mm512_set1_ps(1.0f), n), _mm512_fmadd_ps(_mm512_mul_ps(r, r), p, r)};
}

// 1 / (1 + exp(-x)); beyond 88 as at 88, so never a denormal number.
inline __m512 sigmoid(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 least = _mm512_max_ps(_mm512_set1_ps(-88.0f), _mm512_sub_ps(_mm512_setzero_ps(), x));
  const Exponential e = exponential(_mm512_min_ps(_mm512_set1_ps(88.0f), least));
  return _mm512_div_ps(one, _mm512_add_ps(one, _mm512_fmadd_ps(e.power, e.rest, e.power)));
}

// With t = exp(2|x|) - 1, which loses nothing near zero, it is t / (t + 2).
inline __m512 tanh(__m512 x) {
  const __m512 size = _mm512_min_ps(_mm512_set1_ps(10.0f), _mm512_abs_ps(x));
  const Exponential e = exponential(_mm512_add_ps(size, size));
  const __m512 t = _mm512_fmadd_ps(e.power, e.rest, _mm512_sub_ps(e.power, _mm512_set1_ps(1.0f)));
  const __m512 y = _mm512_div_ps(t, _mm512_add_ps(t, _mm512_set1_ps(2.0f)));
  const __m512 sign = _mm512_and_ps(x, _mm512_set1_ps(-0.0f));
  return _mm512_or_ps(y, sign);
}

}  // namespace
