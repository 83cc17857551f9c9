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
#include <utility>

#include "kernels.h"

namespace fewbit {
namespace {  // unnamed: each instruction set keeps its own copy

#define FEWBIT_INLINE __attribute__((always_inline))

// f(0) … f(N - 1), written out: an array indexed by constants from the start is kept in registers.
template <int N, class F>
FEWBIT_INLINE inline void each(F f) {
  [&]<int... I>(std::integer_sequence<int, I...>) FEWBIT_INLINE { (f(std::integral_constant<int, I>{}), ...); }
  (std::make_integer_sequence<int, N>{});
}

// Apart from the loop: its many cases would take the loop's registers.
template <class Dot, int COLS>
__attribute__((noinline)) void finish_rows(const Linear& l, int first, const typename Dot::Sum (*sums)[COLS], int rows, char* y) {
  for (int r = 0; r < rows; r++, y += l.y_stride) {
    typename Dot::Sum row[COLS];
    each<COLS>([&](auto c) FEWBIT_INLINE { row[c] = sums[r][c]; });
    Dot::template finish<COLS>(l, first, row, y);
  }
}

template <class V, class Dot, int ROWS, int COLS, int DEPTH>
inline void tile(const Linear& l, int first, const char* x, char* y) {
  using Sum = typename Dot::Sum;
  const char* w[COLS];
  Sum sum[DEPTH][ROWS][COLS];
  each<COLS>([&](auto c) FEWBIT_INLINE {
    const int o = first + c * V::LANES;
    w[c] = static_cast<const char*>(l.weight) + ((ptrdiff_t)(o / BLOCK) * l.k * BLOCK + o % BLOCK) * 4;
    each<ROWS>([&](auto r) FEWBIT_INLINE {
      sum[0][r][c] = Dot::load_sum(l.bias, o);
      V::own(sum[0][r][c]);  // a register for each row, or GCC 12 shares one and copies
      each<DEPTH - 1>([&](auto d) FEWBIT_INLINE { sum[d + 1][r][c] = Dot::zero(); });
    });
  });
  const auto flip = V::splat(l.flip);
  const auto step = [&](int k, auto d) FEWBIT_INLINE {  // the rows' codes wait in registers, the weights pass through one
    each<Dot::PARTS>([&](auto part) FEWBIT_INLINE {
      typename V::Codes codes[ROWS];
      each<ROWS>([&](auto r) FEWBIT_INLINE {
        codes[r] = V::broadcast(x + r * l.x_stride + (k * Dot::PARTS + part) * 4);
        if constexpr (Dot::flips) codes[r] = V::flip(codes[r], flip);
      });
      each<COLS>([&](auto c) FEWBIT_INLINE {
        const auto loaded = Dot::template unpack<part>(V::load(w[c] + (ptrdiff_t)k * (BLOCK * 4)));
        each<ROWS>([&](auto r) FEWBIT_INLINE { sum[d][r][c] = Dot::dot(sum[d][r][c], codes[r], loaded); });
      });
    });
  };
  int k = 0;
  for (; k + DEPTH <= l.k; k += DEPTH) each<DEPTH>([&](auto d) FEWBIT_INLINE { step(k + d, d); });
  if constexpr (DEPTH > 1)
    for (; k < l.k; k++) step(k, std::integral_constant<int, 0>{});
  alignas(64) Sum done[ROWS][COLS];
  each<ROWS>([&](auto r) FEWBIT_INLINE {
    each<COLS>([&](auto c) FEWBIT_INLINE {
      done[r][c] = sum[0][r][c];
      each<DEPTH - 1>([&](auto d) FEWBIT_INLINE { done[r][c] = Dot::add(done[r][c], sum[d + 1][r][c]); });
    });
  });
  finish_rows<Dot, COLS>(l, first, &done[0], ROWS, y);
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
  static constexpr int PARTS = 1;
  template <int PART>
  static Sum unpack(Sum w) { return w; }
  static constexpr bool flips = FLIPS;
  static Sum load_sum(const void* bias, int o) { return V::load(static_cast<const int32_t*>(bias) + o); }
  static Sum zero() { return V::splat(0); }
  static Sum add(Sum a, Sum b) { return V::add(a, b); }
  static Sum dot(Sum s, typename V::Codes x, typename V::Codes w) {
    if constexpr (WORDS) return V::dot2(s, x, w);
    else return V::dot4(s, x, w);
  }
  template <int COLS>
  FEWBIT_INLINE static void finish(const Linear& l, int o, Sum (&s)[COLS], char* y) {
    if (l.exit_scale) {
      each<COLS>([&](auto c) FEWBIT_INLINE {
        const int at = o + c * V::LANES;
        V::leave(s[c], l.exit_scale + at, reinterpret_cast<float*>(y) + at);
      });
      return;
    }
    each<COLS>([&](auto c) FEWBIT_INLINE { s[c] = V::requantize(s[c], l.ratio + o + c * V::LANES, l.zero_point); });
    y += (ptrdiff_t)o * size_of(l.type);
    if constexpr (COLS == V::TOGETHER)
      if (size_of(l.type) == 1) return V::store_bytes(s[0], s[1], s[2], s[3], l.type, y);
    each<COLS>([&](auto c) FEWBIT_INLINE { V::store(s[c], l.type, y + c * V::LANES * size_of(l.type)); });
  }
};

template <class V>
struct FloatDot {
  using Sum = typename V::Floats;
  static constexpr int PARTS = 1;
  template <int PART>
  static typename V::Codes unpack(typename V::Codes w) { return w; }
  static constexpr bool flips = false;
  static Sum load_sum(const void* bias, int o) { return V::load_floats(static_cast<const float*>(bias) + o); }
  static Sum zero() { return V::as_floats(V::splat(0)); }
  static Sum add(Sum a, Sum b) { return V::add_floats(a, b); }
  static Sum dot(Sum s, typename V::Codes x, typename V::Codes w) { return V::multiply_add(s, V::as_floats(x), V::as_floats(w)); }
  template <int COLS>
  FEWBIT_INLINE static void finish(const Linear&, int o, Sum (&s)[COLS], char* y) {
    each<COLS>([&](auto c) FEWBIT_INLINE { V::store_floats(s[c], reinterpret_cast<float*>(y) + o + c * V::LANES); });
  }
};

// 4-bit weights, two steps of k in a vector: a nibble in the upper half of its byte is 16 times its code, and so is the sum,
// exactly; one shift puts that right (docs/engine.md: why in registers, and why not everywhere).
template <class V, bool FLIPS>
struct NibbleDot : IntegerDot<V, false, FLIPS> {
  using Base = IntegerDot<V, false, FLIPS>;
  using Sum = typename V::Codes;
  static constexpr int PARTS = 2;
  template <int PART>
  static Sum unpack(Sum w) { return V::high_nibbles(PART ? w : V::template shift_left<4>(w)); }
  template <int COLS>
  FEWBIT_INLINE static void finish(const Linear& l, int o, Sum (&s)[COLS], char* y) {
    each<COLS>([&](auto c) FEWBIT_INLINE { s[c] = V::template shift_right<4>(s[c]); });
    Base::template finish<COLS>(l, o, s, y);
  }
};

template <class V, bool FLIPS> using ByteDot = IntegerDot<V, false, FLIPS>;
template <class V, bool FLIPS> using WordDot = IntegerDot<V, true, FLIPS>;

template <class V>
double peak(long rounds) {
  constexpr int N = 12;  // enough sums to hide a product's latency on two units
  typename V::Codes sum[N], x = V::splat(0x01020304), w = V::splat(0x02010301);
  each<N>([&](auto k) FEWBIT_INLINE {
    sum[k] = V::splat(0);
    V::own(sum[k]);  // or the compiler sees that all sums are one
  });
  for (long i = 0; i < rounds; i++) {
    each<N>([&](auto k) FEWBIT_INLINE {
      sum[k] = V::best_dot(sum[k], x, w);
    });
    V::keep(x, w);
  }
  typename V::Codes total = sum[0];
  each<N - 1>([&](auto k) FEWBIT_INLINE { total = V::add(total, sum[k + 1]); });
  V::keep(total, w);
  return (double)rounds * N * V::LANES * V::BEST;
}

}  // namespace
}  // namespace fewbit
