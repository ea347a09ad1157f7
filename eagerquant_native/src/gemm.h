// Products of unsigned bytes (activations) and a packed weight, exact in 32 bits, handed to an epilogue tile by tile.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "eagerquant.h"
#include "pack.h"

namespace {

constexpr int kPanel = 16;                // columns of one vector of sums
constexpr int kPanels = 4;                // panels of one block of columns
constexpr int kColumns = kPanel * kPanels;

// `Epilogue` has row(m, column, count, sums): of row m, `count` times kPanel sums from `column` on.

#ifdef __AMX_INT8__
#define EQ_HAS_TILES 1
#else
#define EQ_HAS_TILES 0
#endif

#if EQ_HAS_TILES

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
  TileConfig() {
    for (int t = 0; t < 8; ++t) {
      bytes[t] = 64;
      rows[t] = 16;
    }
  }
};

// How far ahead weights are fetched: two steps.
constexpr int64_t kAhead = 128;

// Rows [m, m + 16 * MT) by 32 columns. Tiles 0 to 3: sums; 4, 5: activations; 6, 7: weights.
template <int MT, typename Epilogue>
void tile_block(const uint8_t* a, int64_t lda, const Pack& pack, int64_t m, int64_t rows, int64_t column,
                Epilogue& epilogue) {
  const int8_t* w0 = pack.weights() + column / kColumns * kColumns * pack.depth + column % kColumns * 4;
  const int8_t* w1 = w0 + 4 * kPanel;
  const uint8_t* a0 = a + m * lda;
  const uint8_t* a1 = a0 + 16 * lda;
  _tile_zero(0);
  _tile_zero(1);
  if (MT == 2) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < pack.depth; k += 64) {
    for (int line = 0; line < 16; ++line) {
      const int8_t* ahead = w0 + (k + kAhead + 4 * line) * kColumns;
      _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(ahead + 4 * kPanel), _MM_HINT_T0);
    }
    _tile_loadd(4, a0 + k, lda);
    _tile_loadd(6, w0 + k * kColumns, 4 * kColumns);
    _tile_loadd(7, w1 + k * kColumns, 4 * kColumns);
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
    if (MT == 2) {
      _tile_loadd(5, a1 + k, lda);
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
    }
  }
  alignas(64) int32_t sums[16 * MT][2 * kPanel];
  constexpr int64_t kRow = sizeof(sums[0]);
  _tile_stored(0, sums[0], kRow);
  _tile_stored(1, sums[0] + kPanel, kRow);
  if (MT == 2) {
    _tile_stored(2, sums[16], kRow);
    _tile_stored(3, sums[16] + kPanel, kRow);
  }
  for (int64_t r = 0; r < 16 * MT && m + r < rows; ++r) epilogue.row(m + r, column, 2, sums[r]);
}

// Rows [begin, end) by kColumns columns. Reads whole tiles: `a` must have memory for the rows rounded up to 16.
template <typename Epilogue>
void block_by_tiles(const uint8_t* a, int64_t lda, const Pack& pack, int64_t begin, int64_t end, int64_t column,
                    Epilogue& epilogue) {
  for (int64_t c = column; c < column + kColumns; c += 2 * kPanel) {
    int64_t m = begin;
    for (; m + 16 < end; m += 32) tile_block<2>(a, lda, pack, m, end, c, epilogue);
    for (; m < end; m += 16) tile_block<1>(a, lda, pack, m, end, c, epilogue);
  }
}

// Tiles are configured by each thread that uses them, and given back.
struct TilesOn {
  TilesOn() {
    static const TileConfig config;
    _tile_loadconfig(&config);
  }
  ~TilesOn() { _tile_release(); }
};

#else

struct TilesOn {
  TilesOn() {}
};

#endif  // EQ_HAS_TILES

// MR rows by kColumns columns. Apart from its caller, so that the sums stay in registers until they are stored.
template <int MR>
__attribute__((noinline)) void vector_sums(const uint8_t* a, int64_t lda, const int8_t* w, int64_t depth,
                                           int32_t* out) {
  __m512i sums[MR][kPanels];
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) sums[r][p] = _mm512_setzero_si512();
  for (int64_t k = 0; k < depth; k += 4) {
    __m512i weights[kPanels];
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) weights[p] = _mm512_load_si512(w + k * kColumns + p * 4 * kPanel);
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
      int32_t four;
      std::memcpy(&four, a + r * lda + k, 4);
      const __m512i activations = _mm512_set1_epi32(four);
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) sums[r][p] = _mm512_dpbusd_epi32(sums[r][p], activations, weights[p]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) _mm512_store_si512(out + r * kColumns + p * kPanel, sums[r][p]);
}

template <int MR, typename Epilogue>
void vector_block(const uint8_t* a, int64_t lda, const Pack& pack, int64_t m, int64_t column, Epilogue& epilogue) {
  alignas(64) int32_t sums[MR * kColumns];
  vector_sums<MR>(a + m * lda, lda, pack.weights() + column * pack.depth, pack.depth, sums);
  for (int r = 0; r < MR; ++r) epilogue.row(m + r, column, kPanels, sums + r * kColumns);
}

// Rows [begin, end) by kColumns columns.
template <typename Epilogue>
void block_by_vectors(const uint8_t* a, int64_t lda, const Pack& pack, int64_t begin, int64_t end, int64_t column,
                      Epilogue& epilogue) {
  int64_t m = begin;
  for (; m + 6 <= end; m += 6) vector_block<6>(a, lda, pack, m, column, epilogue);
  switch (end - m) {
    case 5: return vector_block<5>(a, lda, pack, m, column, epilogue);
    case 4: return vector_block<4>(a, lda, pack, m, column, epilogue);
    case 3: return vector_block<3>(a, lda, pack, m, column, epilogue);
    case 2: return vector_block<2>(a, lda, pack, m, column, epilogue);
    case 1: return vector_block<1>(a, lda, pack, m, column, epilogue);
  }
}

// The faster way: tiles, unless there are too few rows to fill one.
template <typename Epilogue>
void block(const uint8_t* a, int64_t lda, const Pack& pack, int64_t begin, int64_t end, int64_t column,
           Epilogue& epilogue) {
#if EQ_HAS_TILES
  constexpr int64_t kFewestRows = 5;
  if (end - begin >= kFewestRows) return block_by_tiles(a, lda, pack, begin, end, column, epilogue);
#endif
  block_by_vectors(a, lda, pack, begin, end, column, epilogue);
}

// What falls to one thread of a whole product, by blocks of kColumns columns and up to kRows rows: the weights of
// one block stay in the cache for all rows. The epilogue is told of each new column with turn_to(column).
template <typename Epilogue>
void by_stripes(const uint8_t* a, int64_t lda, const Pack& pack, int64_t rows, int thread, int threads,
                Epilogue& epilogue) {
  constexpr int64_t kRows = 96;
  const int64_t stripes = (rows + kRows - 1) / kRows, blocks = pack.columns / kColumns;
  const Part part = part_of(stripes * blocks, thread, threads);
  for (int64_t i = part.begin; i < part.end; ++i) {
    const int64_t begin = i % stripes * kRows, end = begin + kRows < rows ? begin + kRows : rows;
    const int64_t column = i / stripes * kColumns;
    if (i == part.begin || begin == 0) epilogue.turn_to(column);
    block(a, lda, pack, begin, end, column, epilogue);
  }
}

}  // namespace
