// The steps of a dynamically quantized LSTM or GRU layer in one direction. The input's part of the gates comes ready;
// a step quantizes the hidden state, multiplies it, and applies the gates. The arithmetic is that of torch's
// operators, in their order, and exp and tanh are torch's own functions, so that the results have torch's bits.
//
// Packed weights are interleaved: a block of 64 columns is 16 units, by four gates (i, f, g, o of an LSTM; r, z, n and
// nothing of a GRU), and hidden units are filled up to 16 with zeros.
#include "activations.h"
#include "gemm.h"

#include <cmath>
#include <cstdlib>

namespace {

constexpr int64_t kReverse = 1 << 8;  // beside the flags of activations.h

constexpr int kUnits = kPanel;  // of one block

struct Functions {
  __m512 (*exp)(__m512);                                             // sixteen at a time
  void (*tanh)(int64_t n, const float* x, float* y, int64_t mode);  // n at a time
  int64_t tanh_mode;

  __m512 sigmoid(__m512 x) const {
    const __m512 one = _mm512_set1_ps(1.0f);
    return _mm512_div_ps(one, _mm512_add_ps(one, exp(_mm512_sub_ps(_mm512_setzero_ps(), x))));
  }
  // At the end of a row torch takes the C library's function, whose last bit can differ.
  static __m512 sigmoid_at_end(__m512 x) {
    alignas(64) float values[kPanel];
    _mm512_store_ps(values, x);
    for (float& value : values) value = 1.0f / (1.0f + std::exp(-value));
    return _mm512_load_ps(values);
  }
  void tanh_all(float* x, int64_t n) const { tanh(n, x, x, tanh_mode); }
};

// Rows that torch takes in one go; what a row has beyond is its end.
constexpr int64_t kTorchStride = 32;

struct Layer {
  const Pack& pack;
  const float* gates;     // [rows of all steps][pack.columns], interleaved
  const int64_t* starts;  // [steps + 1]: the first row of each step; no step has more rows than the one before
  int64_t steps, hidden, flags;
  const Functions& functions;
  float *h, *c;  // [rows of the first step][hidden]: the state, replaced by the last; no `c` in a GRU
  float* out;    // h of each row
  int64_t out_stride;

  bool is_lstm() const { return c != nullptr; }
  int64_t most_rows() const { return starts[1] - starts[0]; }
  int64_t units() const { return pack.columns / 4; }
};

// The units that are one thread's, and what their gates are before and after the activations.
struct Share {
  int64_t begin, width;  // in units
  float* gate[4];        // [rows][width] each

  Share(const Layer& layer, Team team, float* memory) {
    const Part part = team.part_of(layer.units() / kUnits);
    begin = part.begin * kUnits;
    width = (part.end - part.begin) * kUnits;
    for (int g = 0; g < 4; ++g) gate[g] = memory + layer.most_rows() * (4 * begin + g * width);
  }
};

// Scale back to float and add the input's part; the new gate of a GRU, where the reset gate comes between, is kept in
// its two parts.
struct ToGates {
  const Layer& layer;
  const Share& share;
  QParams qparams;
  const float* gates;  // of the step

  void row(int64_t m, int64_t column, int count, const __m512i* sums) {
    const Pack& pack = layer.pack;
    const __m512i zero_point = _mm512_set1_epi32(qparams.zero_point);
    const __m512 scale = _mm512_set1_ps(qparams.scale);
    const int64_t at = m * share.width + column / kColumns * kUnits - share.begin;
    const int first = static_cast<int>(column % kColumns / kPanel);
    for (int p = 0; p < count; ++p, column += kPanel) {
      const __m512i offset = _mm512_mullo_epi32(zero_point, _mm512_load_si512(pack.sums() + column));
      const __m512 product = _mm512_mul_ps(scale, _mm512_load_ps(pack.scale() + column));
      const __m512 own = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(sums[p], offset)), product,
                                         _mm512_load_ps(pack.bias() + column));
      const __m512 input = _mm512_loadu_ps(gates + m * pack.columns + column);
      const int gate = first + p;
      if (layer.is_lstm() || gate < 2) {
        _mm512_store_ps(share.gate[gate] + at, _mm512_add_ps(own, input));
      } else if (gate == 2) {
        _mm512_store_ps(share.gate[2] + at, own);
        _mm512_store_ps(share.gate[3] + at, input);
      }
    }
  }
};

// One step of one thread, from its gates to the next state of its units.
struct Step {
  const Layer& layer;
  const Share& share;
  int64_t rows;
  const float* h;
  float *next, *out;

  // Calls act(place in a gate, place in a state, place in `out`, which units are there, whether torch's stride ends
  // before them).
  template <typename Act>
  void each(Act act) const {
    const int64_t whole = layer.hidden / kTorchStride * kTorchStride;
    for (int64_t m = 0; m < rows; ++m) {
      for (int64_t u = 0; u < share.width; u += kUnits) {
        const int64_t unit = share.begin + u, left = layer.hidden - unit;
        const __mmask16 there = left >= kUnits ? 0xffff : (1u << left) - 1;
        act(m * share.width + u, m * layer.hidden + unit, m * layer.out_stride + unit, there, unit >= whole);
      }
    }
  }

  __m512 sigmoid(const float* x, bool at_end) const {
    const __m512 v = _mm512_load_ps(x);
    return at_end ? Functions::sigmoid_at_end(v) : layer.functions.sigmoid(v);
  }

  void set(int64_t state, int64_t place, __mmask16 there, __m512 h) const {
    _mm512_mask_storeu_ps(next + state, there, h);
    _mm512_mask_storeu_ps(out + place, there, h);
  }

  void lstm() const {
    float *i = share.gate[0], *f = share.gate[1], *g = share.gate[2], *o = share.gate[3], *c = layer.c;
    layer.functions.tanh_all(g, rows * share.width);
    each([&](int64_t at, int64_t state, int64_t, __mmask16 there, bool at_end) {
      const __m512 kept = _mm512_mul_ps(sigmoid(f + at, at_end), _mm512_maskz_loadu_ps(there, c + state));
      const __m512 added = _mm512_mul_ps(sigmoid(i + at, at_end), _mm512_load_ps(g + at));
      const __m512 cell = _mm512_add_ps(kept, added);
      _mm512_mask_storeu_ps(c + state, there, cell);
      _mm512_store_ps(g + at, cell);
      _mm512_store_ps(o + at, sigmoid(o + at, at_end));
    });
    layer.functions.tanh_all(g, rows * share.width);
    each([&](int64_t at, int64_t state, int64_t place, __mmask16 there, bool) {
      set(state, place, there, _mm512_mul_ps(_mm512_load_ps(o + at), _mm512_load_ps(g + at)));
    });
  }

  void gru() const {
    float *r = share.gate[0], *z = share.gate[1], *own = share.gate[2], *input = share.gate[3];
    each([&](int64_t at, int64_t, int64_t, __mmask16, bool at_end) {
      const __m512 reset = _mm512_mul_ps(_mm512_load_ps(own + at), sigmoid(r + at, at_end));
      _mm512_store_ps(own + at, _mm512_add_ps(_mm512_load_ps(input + at), reset));
    });
    layer.functions.tanh_all(own, rows * share.width);
    each([&](int64_t at, int64_t state, int64_t place, __mmask16 there, bool at_end) {
      const __m512 fresh = _mm512_load_ps(own + at), before = _mm512_maskz_loadu_ps(there, h + state);
      const __m512 kept = _mm512_mul_ps(_mm512_sub_ps(before, fresh), sigmoid(z + at, at_end));
      set(state, place, there, _mm512_add_ps(kept, fresh));
    });
  }

  // Sequences that are over, or have not begun, keep their state.
  void keep() const {
    const int64_t end = share.begin + share.width < layer.hidden ? share.begin + share.width : layer.hidden;
    for (int64_t m = rows; m < layer.most_rows(); ++m)
      for (int64_t unit = share.begin; unit < end; ++unit) next[m * layer.hidden + unit] = h[m * layer.hidden + unit];
  }
};

// All steps of one thread, in step with the others: every step needs the whole hidden state of the one before.
// `states`: two of them, the first filled. False if a state is not finite.
bool run(const Layer& layer, Quantized& codes, Team codes_by, Team team, const Share& share, float* const* states) {
  for (int64_t done = 0; done < layer.steps; ++done) {
    const int64_t step = layer.flags & kReverse ? layer.steps - 1 - done : done;
    const int64_t row = layer.starts[step], rows = layer.starts[step + 1] - row;
    const float* h = states[done % 2];
    if (!codes.fill({layer.pack, h, rows, layer.flags, nullptr}, codes_by)) return false;
    ToGates epilogue{layer, share, codes.qparams[0], layer.gates + row * layer.pack.columns};
    for (int64_t unit = share.begin; unit < share.begin + share.width; unit += kUnits)
      block(codes.codes, layer.pack.depth + 64, layer.pack, 0, rows, unit * 4, epilogue);
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
                                        int64_t hidden, int64_t flags, const void* functions, float* h, float* c,
                                        float* out, int64_t out_stride) {
  const Layer layer{*static_cast<const Pack*>(pack), gates, starts, steps, hidden, flags,
                    *static_cast<const Functions*>(functions), h, c, out, out_stride};
  const int64_t rows = layer.most_rows(), states_size = Pack::up(4 * rows * hidden);
  int threads = threads_for(rows * layer.pack.columns * layer.pack.depth, 1 << 17);
  if (threads > layer.units() / kUnits) threads = static_cast<int>(layer.units() / kUnits);
  if (threads > kMostThreads) threads = kMostThreads;
  const bool apart = rows * hidden <= 16384;  // as in linear.cpp
  const Call whole{layer.pack, h, rows, flags, nullptr};
  const int64_t codes_size = Quantized::size(whole), gates_size = 16 * rows * layer.units();
  const int64_t bytes = 2 * states_size + gates_size + codes_size * (apart ? threads : 1);
  uint8_t* memory = static_cast<uint8_t*>(std::aligned_alloc(64, bytes));
  float* states[2] = {reinterpret_cast<float*>(memory), reinterpret_cast<float*>(memory + states_size)};
  float* gates_memory = reinterpret_cast<float*>(memory + 2 * states_size);
  uint8_t* codes_memory = memory + 2 * states_size + gates_size;
  std::memcpy(states[0], h, 4 * rows * hidden);
  Quantized shared(whole, codes_memory);
  bool finite = true;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const TilesOn tiles;
    const Team team{omp_get_thread_num(), omp_get_num_threads()};
    const Share share(layer, team, gates_memory);
    Quantized own(whole, codes_memory + (apart ? codes_size * team.thread : 0));
    const bool done = apart ? run(layer, own, {0, 1}, team, share, states)
                            : run(layer, shared, team, team, share, states);
    if (!done) finite = false;
  }
  std::memcpy(h, states[steps % 2], 4 * rows * hidden);
  std::free(memory);
  return finite ? 0 : 1;
}

// y = sigmoid(x) in one row, then z = tanh(x), as the steps compute them: to see whether torch's are the same.
EQ_EXPORT void EQ(recurrent_functions)(const void* functions, const float* x, int64_t n, float* y, float* z) {
  const Functions& by = *static_cast<const Functions*>(functions);
  for (int64_t at = 0; at < n; at += kPanel) {
    const __mmask16 there = n - at >= kPanel ? 0xffff : (1u << (n - at)) - 1;
    const __m512 v = _mm512_maskz_loadu_ps(there, x + at);
    const bool at_end = at >= n / kTorchStride * kTorchStride;
    _mm512_mask_storeu_ps(y + at, there, at_end ? Functions::sigmoid_at_end(v) : by.sigmoid(v));
  }
  std::memcpy(z, x, 4 * n);
  by.tanh_all(z, n);
}
