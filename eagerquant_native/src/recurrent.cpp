// The steps of a dynamically quantized LSTM or GRU layer in one direction. The input's part of the gates comes ready;
// a step quantizes the hidden state, multiplies it, and applies the gates. The arithmetic is that of torch's operators
// in their order; sigmoid and tanh are those of gates.h, which differ from torch's by a few units in the last place.
//
// Packed weights are interleaved: a block of 64 columns is 16 units, by four gates (i, f, g, o of an LSTM; r, z, n and
// nothing of a GRU), and hidden units are filled up to 16 with zeros.
#include "activations.h"
#include "gates.h"
#include "gemm.h"

#include <cstdlib>

namespace {

constexpr int64_t kReverse = 1 << 8;  // beside the flags of activations.h

constexpr int64_t kUnits = kPanel;  // of one block

struct Layer {
  const Pack& pack;
  const float* gates;     // [rows of all steps][pack.columns], interleaved
  const int64_t* starts;  // [steps + 1]: the first row of each step; no step has more rows than the first
  int64_t steps, hidden, flags;
  float *h, *c;  // [rows of the first step][hidden]: the state, replaced by the last; no `c` in a GRU
  float* out;    // h of each row
  int64_t out_stride;

  bool is_lstm() const { return c != nullptr; }
  int64_t most_rows() const { return starts[1] - starts[0]; }
  int64_t blocks() const { return pack.columns / kColumns; }
};

// The blocks of one thread, and memory for the gates of its units before their activation.
struct Share {
  Part blocks;
  float* gates;  // [rows][width], interleaved
  int64_t width;

  Share(const Layer& layer, Team team, float* memory) : blocks(team.part_of(layer.blocks())) {
    gates = memory + layer.most_rows() * blocks.begin * kColumns;
    width = (blocks.end - blocks.begin) * kColumns;
  }
};

// Scale back to float and add the input's part; the new gate of a GRU, where the reset gate comes between, is kept in
// two parts.
struct ToGates {
  const Layer& layer;
  const Share& share;
  QParams qparams;
  const float* inputs;  // of the step

  void row(int64_t m, int64_t column, int count, const int32_t* sums) {
    const Pack& pack = layer.pack;
    const __m512i zero_point = _mm512_set1_epi32(qparams.zero_point);
    const __m512 scale = _mm512_set1_ps(qparams.scale);
    float* to = share.gates + m * share.width + column - share.blocks.begin * kColumns;
    for (int p = 0; p < count; ++p, column += kPanel, to += kPanel) {
      const int64_t gate = layer.is_lstm() ? 0 : column % kColumns / kPanel;
      if (gate == 3) return;
      const __m512i offset = _mm512_mullo_epi32(zero_point, _mm512_load_si512(pack.sums() + column));
      const __m512 product = _mm512_mul_ps(scale, _mm512_load_ps(pack.scale() + column));
      const __m512 own = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_load_si512(sums + p * kPanel), offset)), product,
                                         _mm512_load_ps(pack.bias() + column));
      const __m512 input = _mm512_loadu_ps(inputs + m * pack.columns + column);
      _mm512_store_ps(to, gate == 2 ? own : _mm512_add_ps(own, input));
      if (gate == 2) _mm512_store_ps(to + kPanel, input);
    }
  }
};

// One step of one thread, from the gates of its units to their next state.
struct Step {
  const Layer& layer;
  const Share& share;
  int64_t rows;
  const float* h;
  float *next, *out;

  // next = unit(its four gates, place in a state, which units are there)
  template <typename Unit>
  void each(Unit unit_of) const {
    for (int64_t m = 0; m < rows; ++m) {
      const float* gates = share.gates + m * share.width;
      for (int64_t block = share.blocks.begin; block < share.blocks.end; ++block, gates += kColumns) {
        const int64_t unit = block * kUnits, left = layer.hidden - unit;
        const __mmask16 there = left >= kUnits ? 0xffff : (1u << left) - 1;
        const __m512 h = unit_of(gates, m * layer.hidden + unit, there);
        _mm512_mask_storeu_ps(next + m * layer.hidden + unit, there, h);
        _mm512_mask_storeu_ps(out + m * layer.out_stride + unit, there, h);
      }
    }
  }

  void lstm() const {
    each([c = layer.c](const float* gates, int64_t state, __mmask16 there) {
      const __m512 kept = _mm512_mul_ps(sigmoid(_mm512_load_ps(gates + kPanel)), _mm512_maskz_loadu_ps(there, c + state));
      const __m512 added = _mm512_mul_ps(sigmoid(_mm512_load_ps(gates)), tanh(_mm512_load_ps(gates + 2 * kPanel)));
      const __m512 cell = _mm512_add_ps(kept, added);
      _mm512_mask_storeu_ps(c + state, there, cell);
      return _mm512_mul_ps(sigmoid(_mm512_load_ps(gates + 3 * kPanel)), tanh(cell));
    });
  }

  void gru() const {
    each([h = h](const float* gates, int64_t state, __mmask16 there) {
      const __m512 own = _mm512_load_ps(gates + 2 * kPanel), input = _mm512_load_ps(gates + 3 * kPanel);
      const __m512 fresh = tanh(_mm512_add_ps(input, _mm512_mul_ps(own, sigmoid(_mm512_load_ps(gates)))));
      const __m512 change = _mm512_sub_ps(_mm512_maskz_loadu_ps(there, h + state), fresh);
      return _mm512_add_ps(_mm512_mul_ps(change, sigmoid(_mm512_load_ps(gates + kPanel))), fresh);
    });
  }

  // Sequences that are over, or have not begun, keep their state.
  void keep() const {
    const int64_t begin = share.blocks.begin * kUnits;
    const int64_t end = share.blocks.end * kUnits < layer.hidden ? share.blocks.end * kUnits : layer.hidden;
    for (int64_t m = rows; m < layer.most_rows(); ++m)
      std::memcpy(next + m * layer.hidden + begin, h + m * layer.hidden + begin, 4 * (end - begin));
  }
};

// All steps of one thread, in step with the others: every step needs the whole hidden state of the one before.
// `states`: two of them, the first filled. False if a state is not finite.
bool run(const Layer& layer, Quantized& input, Team input_team, Team team, const Share& share, float* const* states) {
  for (int64_t done = 0; done < layer.steps; ++done) {
    const int64_t step = layer.flags & kReverse ? layer.steps - 1 - done : done;
    const int64_t row = layer.starts[step], rows = layer.starts[step + 1] - row;
    const float* h = states[done % 2];
    const Call call{layer.pack, h, rows, layer.flags, nullptr};
    if (!input.fill(call, input_team)) return false;
    ToGates epilogue{layer, share, input.qparams[0], layer.gates + row * layer.pack.columns};
    for (int64_t i = share.blocks.begin; i < share.blocks.end; ++i)
      block(input.codes, Quantized::stride(call), layer.pack, 0, rows, i * kColumns, epilogue);
    const Step now{layer, share, rows, h, states[(done + 1) % 2], layer.out + row * layer.out_stride};
    layer.is_lstm() ? now.lstm() : now.gru();
    now.keep();
    team.wait();
  }
  return true;
}

}  // namespace

// Returns 0, or 1 if a hidden state is not finite; the output and the states are then of no use.
EQ_EXPORT int32_t EQ(recurrent_dynamic)(const void* pack, const float* gates, const int64_t* starts, int64_t steps,
                                        int64_t hidden, int64_t flags, float* h, float* c, float* out,
                                        int64_t out_stride) {
  const Layer layer{*static_cast<const Pack*>(pack), gates, starts, steps, hidden, flags, h, c, out, out_stride};
  const int64_t rows = layer.most_rows(), state_size = Pack::up(4 * rows * hidden);
  int threads = threads_for(rows * layer.pack.columns * layer.pack.depth, 1 << 17);
  if (threads > layer.blocks()) threads = static_cast<int>(layer.blocks());
  if (threads > kMostThreads) threads = kMostThreads;
  const bool apart = rows * hidden <= 16384;  // as in linear.cpp
  const Call first{layer.pack, h, rows, flags, nullptr};
  const int64_t gates_size = 4 * rows * layer.pack.columns, codes_size = Quantized::size(first);
  uint8_t* memory = static_cast<uint8_t*>(
      std::aligned_alloc(64, 2 * state_size + gates_size + codes_size * (apart ? threads : 1)));
  float* states[2] = {reinterpret_cast<float*>(memory), reinterpret_cast<float*>(memory + state_size)};
  float* gates_memory = reinterpret_cast<float*>(memory + 2 * state_size);
  uint8_t* codes = memory + 2 * state_size + gates_size;
  std::memcpy(states[0], h, 4 * rows * hidden);
  Quantized shared(first, codes);
  bool finite = true;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const TilesOn tiles;
    const Team team{omp_get_thread_num(), omp_get_num_threads()};
    const Share share(layer, team, gates_memory);
    Quantized own(first, codes + (apart ? codes_size * team.thread : 0));
    const bool done = apart ? run(layer, own, {0, 1}, team, share, states)
                            : run(layer, shared, team, team, share, states);
    if (!done) finite = false;
  }
  std::memcpy(h, states[steps % 2], 4 * rows * hidden);
  std::free(memory);
  return finite ? 0 : 1;
}

// y = sigmoid(x), z = tanh(x), of n values, a multiple of 16.
EQ_EXPORT void EQ(gate_functions)(const float* x, int64_t n, float* y, float* z) {
  for (int64_t at = 0; at < n; at += kPanel) {
    _mm512_storeu_ps(y + at, sigmoid(_mm512_loadu_ps(x + at)));
    _mm512_storeu_ps(z + at, tanh(_mm512_loadu_ps(x + at)));
  }
}
