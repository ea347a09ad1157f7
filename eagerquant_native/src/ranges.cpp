// The smallest and the largest value of a tensor, whole or per channel: NaN where there is one, as in torch.
#include "eagerquant.h"

#include <vector>

#include "loads.h"
#include "range.h"

namespace {

// Shorter runs of one channel than this are not reduced one by one: several channels share a vector.
constexpr int64_t kShort = 512, kWide = 1024;

constexpr int64_t kGrain = 1 << 16;

template <class T>
Range whole(const T* x, int64_t n) {
  return range_of(x, n, kGrain);
}

// Runs of `inner` values, each of one channel.
template <class T>
void long_runs(const T* x, Part runs, int64_t channels, int64_t inner, Range* found) {
  for (int64_t run = runs.begin; run < runs.end; ++run)
    found[run % channels].add(range_of(x + run * inner, inner));
}

constexpr int kTogether = 8;  // rows, between reading and writing what is known of a column

// Rows of `width` values, a whole number of times channels * inner: a range for each column, kWide at a time.
template <class T>
void columns(const T* x, Part rows, int64_t width, int64_t channels, int64_t inner, Range* found) {
  float lows[kWide], highs[kWide];
  int32_t sizes[kWide];
  for (int64_t first = 0; first < width; first += kWide) {
    const int count = int(smaller(kWide, width - first));
    for (int i = 0; i < count; ++i) {
      lows[i] = kInfinity;
      highs[i] = -kInfinity;
      sizes[i] = 0;
    }
    int64_t row = rows.begin;
    for (; row + kTogether <= rows.end; row += kTogether) {
      const T* at = x + row * width + first;
      for (int i = 0; i < count; ++i) {
        Range column{lows[i], highs[i], sizes[i]};
        for (int r = 0; r < kTogether; ++r) column.add(load(at + r * width + i));
        lows[i] = column.low;
        highs[i] = column.high;
        sizes[i] = column.size;
      }
    }
    for (; row < rows.end; ++row) {
      const T* at = x + row * width + first;
      for (int i = 0; i < count; ++i) {
        Range column{lows[i], highs[i], sizes[i]};
        column.add(load(at + i));
        lows[i] = column.low;
        highs[i] = column.high;
        sizes[i] = column.size;
      }
    }
    int64_t channel = first / inner % channels, left = inner - first % inner;  // columns of it that follow
    for (int i = 0; i < count; ++i) {
      found[channel].add({lows[i], highs[i], sizes[i]});
      if (--left > 0) continue;
      left = inner;
      channel = channel + 1 < channels ? channel + 1 : 0;
    }
  }
}

template <class T>
std::vector<Range> per_channel(const T* x, int64_t outer, int64_t channels, int64_t inner) {
  const bool runs = inner >= kShort || outer == 1;
  // Several short rows make a wide one.
  const int64_t width = channels * inner, folded = width < kShort ? kWide / width : 1, wide = outer / folded;
  const int threads = threads_for(outer * channels * inner, kGrain);
  std::vector<Range> found(threads * channels);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const int thread = omp_get_thread_num(), team = omp_get_num_threads();
    Range* const own = &found[thread * channels];
    if (runs) {
      long_runs(x, part_of(outer * channels, thread, team), channels, inner, own);
    } else {
      columns(x, part_of(wide, thread, team, kTogether), folded * width, channels, inner, own);
      if (thread == 0) columns(x, {wide * folded, outer}, width, channels, inner, own);
    }
  }
  for (int64_t c = 0; c < channels; ++c)
    for (int i = 1; i < threads; ++i) found[c].add(found[i * channels + c]);
  found.resize(channels);
  return found;
}

template <class T>
void per_channel(const T* x, int64_t outer, int64_t channels, int64_t inner, float* low, float* high) {
  const std::vector<Range> found = per_channel(x, outer, channels, inner);
  for (int64_t c = 0; c < channels; ++c) found[c].store(low + c, high + c);
}

// The union with the range so far, or with a constant that is not negative the moving average.
template <class T>
int32_t update(const T* x, int64_t outer, int64_t channels, int64_t inner, float* low, float* high, float constant) {
  const std::vector<Range> found =
      channels == 1 ? std::vector<Range>{whole(x, outer * inner)} : per_channel(x, outer, channels, inner);
  for (const Range& range : found)
    if (!range.is_finite()) return 1;
  for (int64_t c = 0; c < channels; ++c) {
    if (constant < 0) {
      low[c] = smaller(found[c].low, low[c]);
      high[c] = larger(found[c].high, high[c]);
    } else {
      average(low + c, high + c, found[c].low, found[c].high, constant);
    }
  }
  return 0;
}

}  // namespace

// out[0], out[1]: the smallest and the largest of the n > 0 values of x, both NaN if any is.
EQ_EXPORT void EQ(range)(const float* x, int64_t n, float* out) { whole(x, n).store(out, out + 1); }
EQ_EXPORT void EQ(range_bfloat16)(const BFloat16* x, int64_t n, float* out) { whole(x, n).store(out, out + 1); }
EQ_EXPORT void EQ(range_half)(const Half* x, int64_t n, float* out) { whole(x, n).store(out, out + 1); }

// The ranges so far, low[channels] and high[channels], with those of x[outer][channels][inner] in them. Returns 0, or
// 1 and leaves them alone if a value is not finite.
EQ_EXPORT int32_t EQ(update_ranges)(const float* x, int64_t outer, int64_t channels, int64_t inner, float* low,
                                    float* high, float constant) {
  return update(x, outer, channels, inner, low, high, constant);
}
EQ_EXPORT int32_t EQ(update_ranges_bfloat16)(const BFloat16* x, int64_t outer, int64_t channels, int64_t inner,
                                             float* low, float* high, float constant) {
  return update(x, outer, channels, inner, low, high, constant);
}
EQ_EXPORT int32_t EQ(update_ranges_half)(const Half* x, int64_t outer, int64_t channels, int64_t inner, float* low,
                                         float* high, float constant) {
  return update(x, outer, channels, inner, low, high, constant);
}

// Of each channel of x[outer][channels][inner], none of which is 0, as `range`.
EQ_EXPORT void EQ(ranges)(const float* x, int64_t outer, int64_t channels, int64_t inner, float* low,
                          float* high) {
  per_channel(x, outer, channels, inner, low, high);
}
EQ_EXPORT void EQ(ranges_bfloat16)(const BFloat16* x, int64_t outer, int64_t channels, int64_t inner,
                                   float* low, float* high) {
  per_channel(x, outer, channels, inner, low, high);
}
EQ_EXPORT void EQ(ranges_half)(const Half* x, int64_t outer, int64_t channels, int64_t inner, float* low,
                               float* high) {
  per_channel(x, outer, channels, inner, low, high);
}
