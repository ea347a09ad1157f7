// The steps of a statically quantized LSTM in one direction. The input's part of the gates comes ready. A step
// multiplies the hidden state, requantizes as torch's FBGEMM operator does, bit for bit, and looks the rest up: an
// operator on two codes is a table of 65536 codes, which torch's own operator has filled.
//
// Packed weights are interleaved: a block of 64 columns is 16 units by four gates, and hidden units are filled up to 16.
#include "eagerquant.h"
#include "gemm.h"
#include "requantize.h"

#include <cstdlib>

namespace {

constexpr int64_t kUnits = kPanel;  // of one block

// As quantization/backends/native_recurrent.py lays it out.
struct Arguments {
  const Pack* pack;
  const float* multiplier;         // [pack->columns], of sums to codes
  const float* offset;             // [pack->columns], the bias in units of sums
  int64_t h_zero_point;            // of the hidden state that comes in
  int64_t zero_point[4];           // of what a gate's product becomes
  const uint8_t* gate[4];          // table of: the input's part, the hidden state's part -> the activated gate
  const uint8_t* kept;             // forget gate, cell state
  const uint8_t* added;            // input gate, cell gate
  const uint8_t* cell;             // kept, added
  const uint8_t* result;           // output gate, cell state
  const uint8_t* inputs[4];        // [steps * rows] of each gate, input_stride apart
  int64_t input_stride;
  int64_t steps, rows, hidden;
  const uint8_t* h;                // [rows][hidden]
  uint8_t* c;                      // [rows][hidden], replaced by the last
  uint8_t* out;                    // [steps][rows][hidden]
};

// Sums to codes of the hidden state's part of the gates.
struct Requantize {
  const Arguments& call;
  uint8_t* codes;  // [rows][width], interleaved
  int64_t width, first_column;

  void row(int64_t m, int64_t column, int count, const int32_t* sums) {
    const __m512i input_zero = _mm512_set1_epi32(static_cast<int32_t>(call.h_zero_point));
    uint8_t* to = codes + m * width + column - first_column;
    for (int p = 0; p < count; ++p, column += kPanel, to += kPanel) {
      const int32_t zero = static_cast<int32_t>(call.zero_point[column % kColumns / kPanel]);
      const __m512i offset = _mm512_mullo_epi32(input_zero, _mm512_load_si512(call.pack->sums() + column));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                       requantized(_mm512_load_si512(sums + p * kPanel), offset, _mm512_loadu_ps(call.offset + column),
                                   _mm512_loadu_ps(call.multiplier + column), zero, 0));
    }
  }
};

inline uint8_t find(const uint8_t* table, uint8_t first, uint8_t second) { return table[first << 8 | second]; }

// The next state of the units of `blocks`.
void look_up(const Arguments& call, int64_t step, Part blocks, const uint8_t* gates, int64_t width) {
  for (int64_t m = 0; m < call.rows; ++m) {
    const int64_t row = step * call.rows + m;
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
      const uint8_t* own = gates + m * width + (block - blocks.begin) * kColumns;
      const int64_t unit = block * kUnits, left = call.hidden - unit;
      uint8_t* c = call.c + m * call.hidden + unit;
      uint8_t* out = call.out + row * call.hidden + unit;
      const uint8_t* input[4];
      for (int g = 0; g < 4; ++g) input[g] = call.inputs[g] + row * call.input_stride + unit;
      for (int u = 0; u < (left < kUnits ? left : kUnits); ++u) {
        uint8_t gate[4];
        for (int g = 0; g < 4; ++g) gate[g] = find(call.gate[g], input[g][u], own[g * kPanel + u]);
        c[u] = find(call.cell, find(call.kept, gate[1], c[u]), find(call.added, gate[0], gate[2]));
        out[u] = find(call.result, gate[3], c[u]);
      }
    }
  }
}

// All steps of one thread, in step with the others. `memory`: codes of the hidden state, then of the gates.
void run(const Arguments& call, Part blocks, int thread_count, uint8_t* memory, int64_t stride, uint8_t* gates) {
  const int64_t width = (blocks.end - blocks.begin) * kColumns;
  for (int64_t step = 0; step < call.steps; ++step) {
    const uint8_t* h = step == 0 ? call.h : call.out + (step - 1) * call.rows * call.hidden;
    for (int64_t m = 0; m < call.rows; ++m) std::memcpy(memory + m * stride, h + m * call.hidden, call.hidden);
    Requantize epilogue{call, gates, width, blocks.begin * kColumns};
    for (int64_t i = blocks.begin; i < blocks.end; ++i)
      block(memory, stride, *call.pack, 0, call.rows, i * kColumns, epilogue);
    look_up(call, step, blocks, gates, width);
    if (thread_count > 1) {
#pragma omp barrier
    }
  }
}

}  // namespace

EQ_EXPORT void EQ(lstm_static)(const void* arguments) {
  const Arguments& call = *static_cast<const Arguments*>(arguments);
  const int64_t blocks = call.pack->columns / kColumns, stride = call.pack->depth + 64;
  int threads = threads_for(call.rows * call.pack->columns * call.pack->depth, 1 << 17);
  if (threads > blocks) threads = static_cast<int>(blocks);
  const int64_t codes_size = (call.rows + 15) / 16 * 16 * stride, gates_size = call.rows * call.pack->columns;
  uint8_t* memory = static_cast<uint8_t*>(std::aligned_alloc(64, threads * codes_size + gates_size));
  std::memset(memory, 0, threads * codes_size);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const TilesOn tiles;
    const int thread = omp_get_thread_num(), count = omp_get_num_threads();
    const Part part = part_of(blocks, thread, count);
    run(call, part, count, memory + thread * codes_size, stride,
        memory + threads * codes_size + call.rows * part.begin * kColumns);
  }
  std::free(memory);
}
