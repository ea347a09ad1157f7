// The search for the part of a histogram to keep: observers/histogram_search.py explains it and is its twin.
#include "eagerquant.h"

#include <algorithm>

namespace {

struct Search {
  double start, end, alpha, beta;  // doubles all, to be one tensor
};

// Moves one end inwards over bins that hold a share `step` of all mass; returns whether that changed the range.
bool advance(Search& s, const float* cumulative, double total, double step) {
  const int64_t start = static_cast<int64_t>(s.start), end = static_cast<int64_t>(s.end);
  const float least = static_cast<float>((s.alpha + step) * total);
  const float most = static_cast<float>((s.beta - step) * total);
  const int64_t left = std::lower_bound(cumulative + start, cumulative + end, least) - cumulative;
  // The first value above `most` among start+1..end, less one.
  const int64_t right = std::upper_bound(cumulative + start + 1, cumulative + end + 1, most) - cumulative - 1;
  if (left - start > end - right) {
    s.alpha += step;
    s.start = static_cast<double>(left);
    return left != start;
  }
  s.beta -= step;
  s.end = static_cast<double>(right);
  return right != end;
}

inline float uniform_error(float begin, float end, float density) {
  return density * ((end * end * end - begin * begin * begin) / 3.0f);
}

// The quotient of two floats has in double the right integer part: it is no nearer to an integer than 2^-24.
inline float level_of(float x, double width, double last) {
  double level = x / width;
  level = level > 0 ? level : 0;
  level = level < last ? level : last;
  return static_cast<float>(static_cast<int32_t>(level));
}

void quantization_errors(const float* density, int64_t bins, double bin_width, Search s, int64_t levels,
                         float* errors) {
  const int32_t first = static_cast<int32_t>(s.start);
  const float step = static_cast<float>(bin_width);
  const float width = static_cast<float>(bin_width * (s.end - s.start + 1) / static_cast<double>(levels));
  const float half = width / 2;
  const double last = static_cast<double>(levels - 1);
  for (int32_t bin = 0; bin < static_cast<int32_t>(bins); ++bin) {
    const float begin = static_cast<float>(bin - first) * step, end = begin + step, mass = density[bin];
    const float from = level_of(begin, width, last), to = level_of(end, width, last);
    float error = uniform_error(begin - (from + 0.5f) * width, half, mass);
    error = error + (to - from - 1) * uniform_error(-half, half, mass);
    errors[bin] = error + uniform_error(-half, end - (to * width + half), mass);
  }
  if (width == 0) std::fill(errors, errors + bins, 0.0f);
}

}  // namespace

// Writes the next ranges[i] = {start, end} of the search, at most `most`, and the errors[i][bins] of quantizing
// each bin to `levels` levels over them; returns how many there were. `state` begins as {0, bins - 1, 0, 1}.
EQ_EXPORT int64_t EQ(next_ranges)(const float* cumulative, double total, const float* density, int64_t bins,
                                  double bin_width, int64_t levels, double step, double* state, int64_t most,
                                  double* ranges, float* errors) {
  Search s{state[0], state[1], state[2], state[3]};
  int64_t found = 0;
  while (found < most && s.alpha < s.beta) {
    if (!advance(s, cumulative, total, step)) continue;
    ranges[2 * found] = s.start;
    ranges[2 * found + 1] = s.end;
    quantization_errors(density, bins, bin_width, s, levels, errors + found * bins);
    ++found;
  }
  state[0] = s.start, state[1] = s.end, state[2] = s.alpha, state[3] = s.beta;
  return found;
}
