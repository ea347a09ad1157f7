// The float types of torch, and how to read them as float.
#pragma once
#include <cstdint>
#include <cstring>

namespace {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline int32_t bits_of(float value) {
  int32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline float load(const float* x) { return *x; }
inline float load(const BFloat16* x) { return float_of(static_cast<uint32_t>(x->bits) << 16); }

// Without a conversion instruction, so that the compiler vectorises it at every level: multiplying by 2^112
// moves the exponent's bias, and makes normal numbers of subnormal ones; all-ones exponents are put back.
inline float load(const Half* x) {
  const uint32_t bits = x->bits, sign = (bits & 0x8000u) << 16, size = (bits & 0x7fffu) << 13;
  const float scaled = float_of(size) * 5.192296858534828e33f;
  const uint32_t special = size >= 0x0f800000u ? size | 0x7f800000u : static_cast<uint32_t>(bits_of(scaled));
  return float_of(special | sign);
}

}  // namespace
