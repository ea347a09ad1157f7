// Float weights to int8 codes.
#include "eagerquant.h"

namespace {

// Added to a number of less than 2^22 and taken off again, it leaves the nearest whole one, ties to even.
constexpr float kRound = 12582912.0f;

}  // namespace

// codes[i][j] = round(x[i][j] * inverse[i]), within [low, high], which are whole numbers of int8. `inverse`
// has one number for each row if `per_row`, else one.
EQ_EXPORT void EQ(quantize_weight)(const float* x, int64_t rows, int64_t columns, const float* inverse,
                                   int64_t per_row, float low, float high, int8_t* codes) {
  const int threads = threads_for(rows * columns, 1 << 16);
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < rows; ++i) {
    const float factor = inverse[per_row ? i : 0];
    const float* from = x + i * columns;
    int8_t* to = codes + i * columns;
    for (int64_t j = 0; j < columns; ++j) {
      float value = from[j] * factor;
      value = value < low ? low : value;
      value = value > high ? high : value;
      to[j] = static_cast<int8_t>(static_cast<int32_t>((value + kRound) - kRound));
    }
  }
}
