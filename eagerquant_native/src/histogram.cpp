// The histogram of a tensor over a range that grows to hold it, with the counts of torch.histc, and the move of
// counts to the bins of a wider range.
#include "eagerquant.h"

#include <vector>

#include "loads.h"
#include "range.h"

namespace {

// Values looked at twice, for their range and their bins, while they are in the first-level cache.
constexpr int64_t kChunk = 2048;
// Neighbours are counted in different counters: one that is incremented again at once makes the CPU wait.
constexpr int kCounters = 4;
static_assert(kCounters == 4, "add_up adds four");
constexpr int kBlock = 64, kLine = 16;

enum Outcome : int32_t { kSameRange = 0, kWiderRange = 1, kNotCounted = 2 };

struct Bins {
  float low, width, count;
  int32_t last;

  Bins(float from, float to, int64_t bins)
      : low(from), width(to - from), count(static_cast<float>(bins)), last(static_cast<int32_t>(bins) - 1) {}
  // torch.histc's way to the bin of a value inside the range: the rounding of each step matters.
  int32_t of(float value) const {
    const int32_t bin = static_cast<int32_t>((value - low) * count / width);
    return bin < last ? bin : last;
  }
  bool usable() const { return width > 0 && width * count < kInfinity; }
};

template <class T>
void count(const T* x, int64_t n, const Bins bins, int32_t* counters) {
  int32_t found[kBlock];
  int64_t at = 0;
  for (; at + kBlock <= n; at += kBlock) {
    // Counting hides from the CPU that the next chunk is wanted soon.
    for (int i = 0; i < kBlock; i += kLine) __builtin_prefetch(x + at + kChunk + i);
    for (int i = 0; i < kBlock; ++i) found[i] = bins.of(load(x + at + i));
    for (int i = 0; i < kBlock; i += kCounters)
      for (int k = 0; k < kCounters; ++k) ++counters[found[i + k] * kCounters + k];
  }
  for (; at < n; ++at) ++counters[bins.of(load(x + at)) * kCounters];
}

// What one thread saw of its part: the range, and the counts as long as all of it was inside the bins.
struct Seen {
  Range range;
  std::vector<int32_t> counters;
  bool counted;
};

template <class T>
void look(const T* x, Part part, const Bins bins, Range limits, Seen* seen) {
  for (int64_t at = part.begin; at < part.end; at += kChunk) {
    const int64_t n = part.end - at < kChunk ? part.end - at : kChunk;
    const Range here = range_of(x + at, n);
    seen->range.add(here);
    seen->counted = seen->counted && here.is_finite() && limits.low <= here.low && here.high <= limits.high;
    if (seen->counted) count(x + at, n, bins, seen->counters.data());
  }
}

void add_up(const std::vector<Seen>& seen, int64_t bins, float* counts) {
  std::vector<int32_t> sums(bins, 0);
  for (const Seen& part : seen) {
    const int32_t* c = part.counters.data();
    for (int64_t bin = 0; bin < bins; ++bin, c += kCounters) sums[bin] += (c[0] + c[1]) + (c[2] + c[3]);
  }
  for (int64_t bin = 0; bin < bins; ++bin) counts[bin] = static_cast<float>(sums[bin]);
}

template <class T>
Outcome histogram(const T* x, int64_t n, int64_t n_bins, const float* low, const float* high, float* counts,
                  float* range) {
  if (n > std::numeric_limits<int32_t>::max()) return kNotCounted;
  const int threads = threads_for(n, 1 << 15);
  std::vector<Seen> seen(threads);
  const Bins old(*low, *high, n_bins);
  const Range limits{*low, *high, 0};
  Range all = limits;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const int thread = omp_get_thread_num();
    seen[thread].counters.assign(n_bins * kCounters, 0);
    seen[thread].counted = old.usable();
    look(x, part_of(n, thread, omp_get_num_threads(), kBlock), old, limits, &seen[thread]);
  }
  bool counted = true;
  for (const Seen& part : seen) {
    counted = counted && part.counted;
    all.add(part.range);
  }
  range[0] = all.low;
  range[1] = all.high;
  if (!counted) {
    const Bins wider(all.low, all.high, n_bins);
    if (!all.is_finite() || !wider.usable()) return kNotCounted;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      std::vector<int32_t>& own = seen[omp_get_thread_num()].counters;
      own.assign(own.size(), 0);
      const Part part = part_of(n, omp_get_thread_num(), omp_get_num_threads(), kBlock);
      count(x + part.begin, part.end - part.begin, wider, own.data());
    }
  }
  add_up(seen, n_bins, counts);
  return counted ? kSameRange : kWiderRange;
}

}  // namespace

// Counts the n > 0 values of x in bins of equal width over range[0]..range[1], the smallest range that holds
// *low..*high and x. Returns whether that is *low..*high itself (0) or wider (1), or that nothing was counted
// (2): x holds NaN or infinity or more values than an int32 counts, or the range has no width or overflows.
EQ_EXPORT int32_t EQ(histogram)(const float* x, int64_t n, int64_t bins, const float* low, const float* high,
                                float* counts, float* range) {
  return histogram(x, n, bins, low, high, counts, range);
}
EQ_EXPORT int32_t EQ(histogram_bfloat16)(const BFloat16* x, int64_t n, int64_t bins, const float* low,
                                         const float* high, float* counts, float* range) {
  return histogram(x, n, bins, low, high, counts, range);
}
EQ_EXPORT int32_t EQ(histogram_half)(const Half* x, int64_t n, int64_t bins, const float* low,
                                     const float* high, float* counts, float* range) {
  return histogram(x, n, bins, low, high, counts, range);
}

// Adds to out[bins] the mass counts[i] / parts for each of the `parts` middles of old bin i, in the new bin that
// holds it: the last one that starts at or below it. Returns 0, and adds nothing, if the edges do not ascend.
EQ_EXPORT int32_t EQ(upscale)(const float* counts, int64_t bins, int64_t parts, const float* middles,
                              const float* edges, float* out) {
  for (int64_t bin = 0; bin < bins; ++bin)
    if (!(edges[bin] <= edges[bin + 1])) return 0;
  int64_t to = 0;
  for (int64_t from = 0; from < bins; ++from) {
    const float mass = counts[from] / static_cast<float>(parts);
    for (int64_t i = 0; i < parts; ++i) {
      const float middle = middles[from * parts + i];
      while (to < bins - 1 && edges[to + 1] <= middle) ++to;
      while (to > 0 && edges[to] > middle) --to;
      out[to] += mass;
    }
  }
  return 1;
}
