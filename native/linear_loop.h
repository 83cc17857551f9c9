// The linear layer's loop, once for every instruction set and every kind of code.
//
//   for each output o:  y[o] = finish(bias[o] + sum_k dot(x[k], w[k][o]))
//
// 1. Outputs lie LANES to a vector; weights come in blocks of 16 outputs, [block][k][16] of four bytes, padded when packed.
// 2. ROWS rows times COLS vectors are held in registers, so that each weight is loaded once for ROWS rows.
// 3. Few rows leave too few sums to hide the product's latency: DEPTH sets of them run side by side and are added.
// 4. The panel of weights is the outer loop and the rows the inner: a panel stays in the first cache.
//
// V brings LANES, ROWS, COLS, TOGETHER (vectors whose bytes are stored at once; 0: none), the vectors' types and operations.
#pragma once
#include "kernels.h"

namespace fewbit {
namespace {  // unnamed: each instruction set keeps its own copy

#define FEWBIT_UNROLL _Pragma("GCC unroll 32")

template <class V, class Dot, int ROWS, int COLS, int DEPTH>
inline void tile(const Linear& l, int first, const char* x, char* y) {
  using Sum = typename Dot::Sum;
  const auto weight = [&](int v) {  // of vector v of this panel
    const int o = first + v * V::LANES;
    return static_cast<const char*>(l.weight) + ((ptrdiff_t)(o / BLOCK) * l.k * BLOCK + o % BLOCK) * 4;
  };
  const char* w[COLS];
  Sum sum[DEPTH][ROWS][COLS];
  FEWBIT_UNROLL for (int c = 0; c < COLS; c++) {
    w[c] = weight(c);
    FEWBIT_UNROLL for (int r = 0; r < ROWS; r++) {
      sum[0][r][c] = Dot::load_sum(l.bias, first + c * V::LANES);
      FEWBIT_UNROLL for (int d = 1; d < DEPTH; d++) sum[d][r][c] = Dot::zero();
    }
  }
  const auto flip = V::splat(l.flip);
  const auto step = [&](int k, int d) {  // the rows' codes wait in registers, the weights pass through one
    typename V::Codes codes[ROWS];
    FEWBIT_UNROLL for (int r = 0; r < ROWS; r++) {
      codes[r] = V::broadcast(x + r * l.x_stride + k * 4);
      if constexpr (Dot::flips) codes[r] = V::flip(codes[r], flip);
    }
    FEWBIT_UNROLL for (int c = 0; c < COLS; c++) {
      const auto loaded = V::load(w[c] + (ptrdiff_t)k * BLOCK * 4);
      FEWBIT_UNROLL for (int r = 0; r < ROWS; r++) sum[d][r][c] = Dot::dot(sum[d][r][c], codes[r], loaded);
    }
  };
  int k = 0;
  for (; k + DEPTH <= l.k; k += DEPTH)
    FEWBIT_UNROLL for (int d = 0; d < DEPTH; d++) step(k + d, d);
  for (; k < l.k; k++) step(k, 0);
  FEWBIT_UNROLL for (int r = 0; r < ROWS; r++) {
    FEWBIT_UNROLL for (int c = 0; c < COLS; c++)
      FEWBIT_UNROLL for (int d = 1; d < DEPTH; d++) sum[0][r][c] = Dot::add(sum[0][r][c], sum[d][r][c]);
    Dot::template finish<COLS>(l, first, sum[0][r], y + r * l.y_stride);
  }
}

template <class V, class Dot, int COLS>
inline void panel(const Linear& l, int first, const char* x, char* y, int rows) {
  constexpr int ONE = COLS == 1 ? 8 : 2, TWO = COLS == 1 ? 4 : 1, ALL = COLS == 1 ? 2 : 1;
  int r = 0;
  for (; r + V::ROWS <= rows; r += V::ROWS) tile<V, Dot, V::ROWS, COLS, ALL>(l, first, x + r * l.x_stride, y + r * l.y_stride);
  for (; r + 2 <= rows; r += 2) tile<V, Dot, 2, COLS, TWO>(l, first, x + r * l.x_stride, y + r * l.y_stride);
  for (; r < rows; r++) tile<V, Dot, 1, COLS, ONE>(l, first, x + r * l.x_stride, y + r * l.y_stride);
}

template <class V, class Dot>
inline void panels(const Linear& l, const char* x, char* y, int rows) {
  const int end = l.blocks * BLOCK;
  int first = 0;
  for (; first + V::COLS * V::LANES <= end; first += V::COLS * V::LANES) panel<V, Dot, V::COLS>(l, first, x, y, rows);
  for (; first < end; first += V::LANES) panel<V, Dot, 1>(l, first, x, y, rows);
}

// A layer whose codes have the product's own signedness needs no register for the flip.
template <class V, template <class, bool> class Dot>
void linear(const Linear& l, const char* x, char* y, int rows) {
  if (l.flip) panels<V, Dot<V, true>>(l, x, y, rows);
  else panels<V, Dot<V, false>>(l, x, y, rows);
}

// What is multiplied: four 8-bit codes, two 16-bit codes, or one float.
template <class V, bool WORDS, bool FLIPS>
struct IntegerDot {
  using Sum = typename V::Codes;
  static constexpr bool flips = FLIPS;
  static Sum load_sum(const void* bias, int o) { return V::load(static_cast<const int32_t*>(bias) + o); }
  static Sum zero() { return V::splat(0); }
  static Sum add(Sum a, Sum b) { return V::add(a, b); }
  static Sum dot(Sum s, typename V::Codes x, typename V::Codes w) {
    if constexpr (WORDS) return V::dot2(s, x, w);
    else return V::dot4(s, x, w);
  }
  template <int COLS>
  static void finish(const Linear& l, int o, Sum* s, char* y) {
    if (l.exit_scale) {
      FEWBIT_UNROLL for (int c = 0; c < COLS; c++, o += V::LANES) V::leave(s[c], l.exit_scale + o, reinterpret_cast<float*>(y) + o);
      return;
    }
    FEWBIT_UNROLL for (int c = 0; c < COLS; c++) s[c] = V::requantize(s[c], l.ratio + o + c * V::LANES, l.zero_point);
    y += (ptrdiff_t)o * size_of(l.type);
    if constexpr (COLS == V::TOGETHER)
      if (size_of(l.type) == 1) return V::store_bytes(s, l.type, y);
    FEWBIT_UNROLL for (int c = 0; c < COLS; c++, y += V::LANES * size_of(l.type)) V::store(s[c], l.type, y);
  }
};

template <class V>
struct FloatDot {
  using Sum = typename V::Floats;
  static constexpr bool flips = false;
  static Sum load_sum(const void* bias, int o) { return V::load_floats(static_cast<const float*>(bias) + o); }
  static Sum zero() { return V::as_floats(V::splat(0)); }
  static Sum add(Sum a, Sum b) { return V::add_floats(a, b); }
  static Sum dot(Sum s, typename V::Codes x, typename V::Codes w) { return V::multiply_add(s, V::as_floats(x), V::as_floats(w)); }
  template <int COLS>
  static void finish(const Linear&, int o, Sum* s, char* y) {
    FEWBIT_UNROLL for (int c = 0; c < COLS; c++, o += V::LANES) V::store_floats(s[c], reinterpret_cast<float*>(y) + o);
  }
};

template <class V, bool FLIPS> using ByteDot = IntegerDot<V, false, FLIPS>;
template <class V, bool FLIPS> using WordDot = IntegerDot<V, true, FLIPS>;

template <class V>
double peak(long rounds) {
  constexpr int N = 12;  // enough sums to hide a product's latency on two units
  typename V::Codes sum[N], x = V::splat(0x01020304), w = V::splat(0x02010301);
  for (auto& s : sum) s = V::splat(0);
  for (long i = 0; i < rounds; i++) {
    FEWBIT_UNROLL for (int k = 0; k < N; k++) sum[k] = V::best_dot(sum[k], x, w);
    V::keep(x, w);
  }
  typename V::Codes total = sum[0];
  FEWBIT_UNROLL for (int k = 1; k < N; k++) total = V::add(total, sum[k]);
  V::keep(total, w);
  return (double)rounds * N * V::LANES * V::BEST;
}

}  // namespace
}  // namespace fewbit
