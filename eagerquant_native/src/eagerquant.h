// What every kernel file shares. A file is compiled once per level of its list in setup.py (portable, avx2,
// avx512, vnni, amx), each time with that level's flags, and its functions carry the level in their names:
// EQ(range) is eq_range_avx2 and so on. Python picks a level at run time (eagerquant_native/library.py), so
// nothing here dispatches, and nothing here depends on torch's or Python's binary interface.
#pragma once
#include <cstdint>

#define EQ_JOIN_(name, level) eq_##name##_##level
#define EQ_JOIN(name, level) EQ_JOIN_(name, level)
#define EQ(name) EQ_JOIN(name, EQ_LEVEL)
#define EQ_EXPORT extern "C" __attribute__((visibility("default")))

#ifdef _OPENMP
#include <omp.h>
#else
static inline int omp_get_max_threads() { return 1; }
static inline int omp_get_num_threads() { return 1; }
static inline int omp_get_thread_num() { return 0; }
#endif

namespace {

// Threads worth waking for `work` elements, `grain` of them each; torch.set_num_threads sets the most.
inline int threads_for(int64_t work, int64_t grain) {
  const int64_t wanted = (work + grain - 1) / grain;
  const int64_t most = omp_get_max_threads();
  return static_cast<int>(wanted < 1 ? 1 : wanted < most ? wanted : most);
}

// The part [begin, end) of n items that falls to one thread, in multiples of `unit`.
struct Part {
  int64_t begin, end;
};
inline Part part_of(int64_t n, int thread, int threads, int64_t unit = 1) {
  const int64_t units = (n + unit - 1) / unit;
  const int64_t begin = units * thread / threads * unit;
  const int64_t end = units * (thread + 1) / threads * unit;
  return {begin < n ? begin : n, end < n ? end : n};
}

}  // namespace
