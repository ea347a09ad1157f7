// The moving average of the range, the grid it gives, and rounding to that at once.
#include "grid.h"

#include <vector>

namespace {

inline bool is_range(float low, float high) { return low > -kInfinity && high < kInfinity && low <= high; }

// What a fused fake quantizer trains with; conversion has a formula of its own (observers/base.py).
struct Choice {
  float scale;
  int32_t zero_point;
};
inline Choice choose(float low, float high, int64_t lowest, int64_t highest, bool symmetric) {
  const bool around_zero = low < 0 && high > 0;
  const int steps = int(highest - lowest);
  if (around_zero && symmetric) {
    const int above = steps / 2, below = -(above + 1);
    const double step = std::max(std::fabs(low / below), std::fabs(high / above));
    low = float(step * below);
    high = float(step * above);
  }
  low = std::min(low, 0.0f);
  high = std::max(high, 0.0f);
  float scale = float((double(high) - low) / steps);
  if (scale == 0.0f || std::isinf(1.0f / scale)) scale = 0.1f;
  constexpr float kSmallest = 6.1e-5f;
  if (scale < kSmallest) {
    const float wider = kSmallest / scale;
    scale = kSmallest;
    if (low == 0.0f)
      high = kSmallest * steps;
    else if (high == 0.0f)
      low = -kSmallest * steps;
    else
      low *= wider, high *= wider;
  }
  // From the end where the division loses less.
  const double below = low / double(scale), above = high / double(scale);
  const bool from_low = std::abs(lowest) + std::fabs(below) < std::abs(highest) + std::fabs(above);
  double zero_point = from_low ? lowest - below : highest - above;
  if (low < 0 && high > 0 && symmetric) zero_point = double(lowest + highest) / 2;
  zero_point = std::min(std::max(zero_point, double(lowest)), double(highest));
  return {scale, int32_t(std::nearbyint(zero_point))};
}

template <class T>
int32_t observe_tensor(const T* x, int64_t n, int32_t observing, float* low, float* high, float constant,
                       int64_t lowest, int64_t highest, int32_t symmetric, float* scale, int32_t* zero_point) {
  float new_low = *low, new_high = *high;
  if (observing) {
    const Range found = range_of(x, n, kGrain);
    if (!found.is_finite()) return 1;
    average(&new_low, &new_high, found.low, found.high, constant);
  }
  if (!is_range(new_low, new_high)) return 1;
  const Choice choice = choose(new_low, new_high, lowest, highest, symmetric != 0);
  *low = new_low;
  *high = new_high;
  *scale = choice.scale;
  *zero_point = choice.zero_point;
  return 0;
}

// What a fused fake quantizer reads and writes, per tensor or per channel.
struct Averages {
  float *low, *high, constant;
  int64_t lowest, highest;
  bool symmetric;
  float* scale;
  int32_t* zero_point;
};

// Row by row, so that a row is read from memory once: row(c, room) gives `inner` values, in `room` if it likes.
// What is observed is kept when all rows are well.
template <class T, class F>
int32_t observe_and_round(F row_of, T* y, uint32_t* mask, int64_t channels, int64_t inner, bool observing,
                          const Averages& to) {
  struct Row {
    float low, high;
    Choice choice;
  };
  std::vector<Row> rows(channels);
  expect_writes(y, channels * inner * sizeof(T));
  const int64_t words = (inner + kBlock - 1) / kBlock;
  const int threads = threads_for(channels * inner, kGrain);
  int bad = 0;
#pragma omp parallel num_threads(threads) reduction(| : bad) if (threads > 1)
  {
    const Part part = part_of(channels, omp_get_thread_num(), omp_get_num_threads());
    std::vector<T> room(inner);
    for (int64_t c = part.begin; c < part.end && !bad; ++c) {
      const T* from = row_of(c, room.data());
      Row row{to.low[c], to.high[c], {}};
      if (observing) {
        const Range batch = range_of(from, inner);
        bad |= !batch.is_finite();
        average(&row.low, &row.high, batch.low, batch.high, to.constant);
      }
      bad |= !is_range(row.low, row.high);
      if (bad) break;
      row.choice = choose(row.low, row.high, to.lowest, to.highest, to.symmetric);
      const Grid grid(row.choice.scale, row.choice.zero_point, to.lowest, to.highest, kLargest64);
      bad |= !grid.usable();
      round_run(from, y + c * inner, mask ? mask + c * words : nullptr, inner, grid);
      rows[c] = row;
    }
  }
  if (bad) return 1;
  for (int64_t c = 0; c < channels; ++c) {
    to.low[c] = rows[c].low;
    to.high[c] = rows[c].high;
    to.scale[c] = rows[c].choice.scale;
    to.zero_point[c] = rows[c].choice.zero_point;
  }
  return 0;
}

inline void keep_scaled_run(const float* __restrict gradient, const uint32_t* __restrict mask, const float* __restrict x,
                            float factor, float* __restrict by_x, float* __restrict by_factor, int64_t n) {
  for (int64_t at = 0; at < n; at += kBlock) {
    const uint32_t bits = *mask++;
    const int count = int(std::min<int64_t>(kBlock, n - at));
    for (int i = 0; i < count; ++i) {
      const float kept = bits & 1u << i ? gradient[at + i] : 0.0f;
      by_x[at + i] = kept * factor;
      by_factor[at + i] = kept * x[at + i];
    }
  }
}

// The same of a row whose gradient, and so the results, lie transposed: [k][i] where mask and x have [i][k].
inline void keep_scaled_across(const float* __restrict gradient, const uint32_t* __restrict mask,
                               const float* __restrict x, float factor, float* __restrict by_x,
                               float* __restrict by_factor, int32_t is, int32_t ks) {
  for (int32_t k = 0; k < ks; ++k) {
    for (int32_t i = 0; i < is; ++i) {
      const int32_t at = i * ks + k;
      const float kept = mask[at / kBlock] >> at % kBlock & 1 ? gradient[i] : 0.0f;
      by_x[i] = kept * factor;
      by_factor[i] = kept * x[at];
    }
    gradient += is;
    by_x += is;
    by_factor += is;
  }
}

}  // namespace

// Each returns 0; or 1, with nothing changed, where it leaves the work to torch: values or ranges that are not
// finite, a grid too far from zero.
#define EQ_EXPORTS(suffix, T) \
  EQ_EXPORT int32_t EQ(observe_tensor##suffix)(const T* x, int64_t n, int32_t observing, float* low, float* high,   \
                                               float constant, int64_t lowest, int64_t highest, int32_t symmetric,  \
                                               float* scale, int32_t* zero_point) {                                 \
    return observe_tensor(x, n, observing, low, high, constant, lowest, highest, symmetric, scale, zero_point);     \
  }                                                                                                                 \
  EQ_EXPORT int32_t EQ(observe_and_round##suffix)(                                                                  \
      const T* x, T* y, uint32_t* mask, int64_t channels, int64_t inner, int32_t observing, float* low,             \
      float* high, float constant, int64_t lowest, int64_t highest, int32_t symmetric, float* scale,                \
      int32_t* zero_point) {                                                                                        \
    const Averages to{low, high, constant, lowest, highest, symmetric != 0, scale, zero_point};                     \
    const auto row = [=](int64_t c, T*) { return x + c * inner; };                                                  \
    return observe_and_round<T>(row, y, mask, channels, inner, observing != 0, to);                                 \
  }

EQ_EXPORTS(, float)
EQ_EXPORTS(_bfloat16, BFloat16)
EQ_EXPORTS(_half, Half)

// The same of x times a factor per channel, which is not written anywhere.
EQ_EXPORT int32_t EQ(observe_and_round_scaled)(const float* x, const float* factor, float* y, uint32_t* mask,
                                               int64_t channels, int64_t inner, int32_t observing, float* low,
                                               float* high, float constant, int64_t lowest, int64_t highest,
                                               int32_t symmetric, float* scale, int32_t* zero_point) {
  const Averages to{low, high, constant, lowest, highest, symmetric != 0, scale, zero_point};
  const auto row = [=](int64_t c, float* __restrict room) {
    for (int64_t i = 0; i < inner; ++i) room[i] = x[c * inner + i] * factor[c];
    return static_cast<const float*>(room);
  };
  return observe_and_round<float>(row, y, mask, channels, inner, observing != 0, to);
}

// Its gradient: by x into `by_x`, and the values whose sums per channel are that by the factor into `by_factor`.
EQ_EXPORT void EQ(keep_scaled)(const float* gradient, const uint32_t* mask, const float* x, const float* factor,
                               float* by_x, float* by_factor, int64_t channels, int64_t inner) {
  expect_writes(by_x, channels * inner * sizeof(float));
  each_run(channels, inner, [&](int64_t c, int64_t at, int64_t count, int64_t word) {
    const int64_t first = c * inner + at;
    keep_scaled_run(gradient + first, mask + word, x + first, factor[c], by_x + first, by_factor + first, count);
  });
}

// The same where gradient, by_x and by_factor are [channels][ks][is], and x is [channels][is][ks].
EQ_EXPORT void EQ(keep_scaled_across)(const float* gradient, const uint32_t* mask, const float* x, const float* factor,
                                      float* by_x, float* by_factor, int64_t channels, int64_t is, int64_t ks) {
  const int64_t inner = is * ks, words = (inner + kBlock - 1) / kBlock;
#pragma omp parallel for num_threads(threads_for(channels * inner, kGrain))
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t first = c * inner;
    keep_scaled_across(gradient + first, mask + c * words, x + first, factor[c], by_x + first, by_factor + first,
                       int32_t(is), int32_t(ks));
  }
}
