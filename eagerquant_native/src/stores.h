// Writing float as the float types of torch, rounded to the nearest, ties to even: what loads.h reads.
#pragma once
#include "loads.h"

namespace {

inline void store(float value, float* y) { *y = value; }

inline void store(float value, BFloat16* y) {
  const uint32_t bits = static_cast<uint32_t>(bits_of(value));
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  y->bits = static_cast<uint16_t>(value == value ? rounded : 0x7fc0u);
}

// Without a conversion instruction, so that the compiler vectorises it at every level. Adding 0.5 moves the bits
// of a number that is subnormal as Half to where they belong, and rounds them.
inline void store(float value, Half* y) {
  const uint32_t bits = static_cast<uint32_t>(bits_of(value)), size = bits & 0x7fffffffu;
  const uint32_t normal = (size - 0x38000000u + 0xfffu + (size >> 13 & 1u)) >> 13;
  const uint32_t tiny = static_cast<uint32_t>(bits_of(float_of(size) + 0.5f)) - 0x3f000000u;
  const uint32_t finite = size < 0x38800000u ? tiny : normal;
  const uint32_t large = size > 0x7f800000u ? 0x7e00u : 0x7c00u;  // NaN, infinity
  y->bits = static_cast<uint16_t>((bits >> 16 & 0x8000u) | (size < 0x477ff000u ? finite : large));
}

}  // namespace
