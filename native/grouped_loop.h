// The loop over grouped weights (grouped.h), once for every instruction set.
//
// A block of 16 rows passes through the registers once for a tile of T tokens. Codes are unsigned; V::byte_dot may subtract
// V::BYTE_ZERO from 8-bit ones, which the zero point then makes good. V::WIDE: it takes any byte as it is, and registers abound.
#pragma once
#include <bit>
#include <cstring>

#include "grouped.h"
#include "linear_loop.h"

namespace fewbit {
namespace {

constexpr int PREFETCH = 4096;  // bytes ahead, for one token, which waits for memory

// Four columns of every row, a byte each: the I-th of a chunk. at: the first of V's lanes.
template <class V, int BITS, int I>
FEWBIT_INLINE inline typename V::Codes columns(const uint8_t* at) {
  if constexpr (BITS == 8) return V::load(at);
  else if constexpr (BITS == 4) return V::template field<4 * I, 15>(V::load(at));
  else if constexpr (BITS == 2) return V::template field<2 * I, 3>(V::load(at));
  else {
    const auto high = V::load(at + 128);
    const auto low = V::template field<2 * (I % 4), 3>(V::load(at + 64 * (I / 4)));
    if constexpr (I < 2) return V::either(low, V::template field<0, 4>(V::template shift_left<2 - I>(high)));
    else return V::either(low, V::template field<I - 2, 4>(high));
  }
}

// Group by group, the integer sums of a tile: leave(g, sums).
template <class V, int BITS, int T, class F>
FEWBIT_INLINE inline void integer_sums(const Grouped& w, const uint8_t* p, const int8_t* tokens, F leave) {
  constexpr int N = 16 / V::LANES, PARTS = chunk_columns(BITS) / 4;
  const auto* x = reinterpret_cast<const char*>(tokens);
  for (int g = 0; g < w.groups; g++) {
    typename V::Codes sum[T][N];
    each<T>([&](auto t) FEWBIT_INLINE { each<N>([&](auto n) FEWBIT_INLINE {
      sum[t][n] = V::splat(0);
      V::own(sum[t][n]);
    }); });
    [[maybe_unused]] typename V::Codes high[T][N];  // 16 times the sums of the high nibbles: exact, and no shift in the loop
    if constexpr (BITS == 4 && V::WIDE)
      each<T>([&](auto t) FEWBIT_INLINE { each<N>([&](auto n) FEWBIT_INLINE { high[t][n] = V::splat(0); }); });
    for (int k = 0; k < w.group_size; k += PARTS * 4, p += chunk_bytes(BITS), x += PARTS * 4 * T) {
      if constexpr (T == 1)
        for (int line = 0; line < chunk_bytes(BITS); line += 64) __builtin_prefetch(p + PREFETCH + line);
      each<N>([&](auto n) FEWBIT_INLINE {
        const uint8_t* at = p + n * V::LANES * 4;
        if constexpr (PARTS == 1) {
          const auto code = V::load(at);
          each<T>([&](auto t) FEWBIT_INLINE { sum[t][n] = V::byte_dot(sum[t][n], code, x + 4 * t); });
        } else if constexpr (BITS == 4 && V::WIDE) {
          const auto both = V::load(at), low = V::template field<0, 15>(both), rest = V::high_nibbles(both);
          each<T>([&](auto t) FEWBIT_INLINE {
            sum[t][n] = V::byte_dot(sum[t][n], low, x + 4 * t);
            high[t][n] = V::byte_dot(high[t][n], rest, x + 4 * T + 4 * t);
          });
        } else {
          each<PARTS / 2>([&](auto i) FEWBIT_INLINE {
            const auto a = columns<V, BITS, 2 * i>(at), b = columns<V, BITS, 2 * i + 1>(at);
            each<T>([&](auto t) FEWBIT_INLINE {
              sum[t][n] = V::small_dot(sum[t][n], a, b, x + 8 * i * T + 4 * t, x + (8 * i + 4) * T + 4 * t);
            });
          });
        }
      });
    }
    if constexpr (BITS == 4 && V::WIDE)
      each<T>([&](auto t) FEWBIT_INLINE {
        each<N>([&](auto n) FEWBIT_INLINE { sum[t][n] = V::add(sum[t][n], V::template shift_right<4>(high[t][n])); });
      });
    leave(g, sum);
  }
}

template <int T>
inline void leave_block(const Grouped& w, int block, const float* sums, float* y) {
  const int first = block * 16, count = w.out - first < 16 ? w.out - first : 16;
  for (int t = 0; t < T; t++) {
    float row[16];
    memcpy(row, sums + 16 * t, sizeof row);
    if (w.bias)
      for (int i = 0; i < 16; i++) row[i] += w.bias[first + i];
    if (count == 16) memcpy(y + (ptrdiff_t)t * w.out + first, row, sizeof row);
    else memcpy(y + (ptrdiff_t)t * w.out + first, row, (size_t)count * sizeof(float));
  }
}

template <class V, int BITS, int T>
void grouped_tile(const Grouped& w, int block, const Tokens& x, float* y) {
  constexpr int N = 16 / V::LANES, ZERO = BITS == 8 ? V::BYTE_ZERO : 0;
  const ptrdiff_t first = (ptrdiff_t)block * w.groups * 16;
  typename V::Floats total[T][N];
  each<T>([&](auto t) FEWBIT_INLINE { each<N>([&](auto n) FEWBIT_INLINE { total[t][n] = V::as_floats(V::splat(0)); }); });
  integer_sums<V, BITS, T>(w, w.codes + block * w.block_bytes, x.codes, [&](int g, auto& sum) FEWBIT_INLINE {
    each<N>([&](auto n) FEWBIT_INLINE {
      const ptrdiff_t at = first + g * 16 + n * V::LANES;
      const auto scale = V::load_half(w.scale + at);
      const auto zero = V::subtract(w.zero ? V::load_bytes(w.zero + at) : V::splat((uint32_t)w.middle), V::splat(ZERO));
      each<T>([&](auto t) FEWBIT_INLINE {
        const auto exact = V::subtract(sum[t][n], V::multiply(zero, V::splat((uint32_t)x.sum[g * T + t])));
        const auto step = V::multiply_floats(scale, V::splat_float(x.scale[g * T + t]));
        total[t][n] = V::add_floats(total[t][n], V::multiply_floats(V::to_floats(exact), step));
      });
    });
  });
  alignas(64) float sums[T * 16];
  each<T>([&](auto t) FEWBIT_INLINE { each<N>([&](auto n) FEWBIT_INLINE { V::store_floats(total[t][n], sums + 16 * t + n * V::LANES); }); });
  leave_block<T>(w, block, sums, y);
}

// Float activations: (u - zero) exactly, times x, summed in float32 within the group, then times the scale.
template <class V, int BITS, int T>
void grouped_float_tile(const Grouped& w, int block, const Tokens& x, float* y) {
  constexpr int N = 16 / V::LANES, PARTS = chunk_columns(BITS) / 4;
  const ptrdiff_t first = (ptrdiff_t)block * w.groups * 16;
  const uint8_t* p = w.codes + block * w.block_bytes;
  alignas(64) float sums[T * 16];
  each<N>([&](auto n) FEWBIT_INLINE {
    const uint8_t* at = p + n * V::LANES * 4;
    const float* from = x.floats;
    typename V::Floats total[T];
    each<T>([&](auto t) FEWBIT_INLINE { total[t] = V::as_floats(V::splat(0)); });
    for (int g = 0; g < w.groups; g++) {
      const ptrdiff_t place = first + g * 16 + n * V::LANES;
      const auto zero = w.zero ? V::load_bytes(w.zero + place) : V::splat((uint32_t)w.middle);
      typename V::Floats sum[T];
      each<T>([&](auto t) FEWBIT_INLINE { sum[t] = V::as_floats(V::splat(0)); });
      for (int k = 0; k < w.group_size; k += PARTS * 4, at += chunk_bytes(BITS), from += PARTS * 4 * T)
        each<PARTS>([&](auto i) FEWBIT_INLINE {
          const auto four = columns<V, BITS, i>(at);
          each<4>([&](auto j) FEWBIT_INLINE {
            const auto weight = V::to_floats(V::subtract(V::template lowest_byte<j>(four), zero));
            each<T>([&](auto t) FEWBIT_INLINE {
              sum[t] = V::multiply_add(sum[t], V::splat_float(from[(4 * i + j) * T + t]), weight);
            });
          });
        });
      const auto scale = V::load_half(w.scale + place);
      each<T>([&](auto t) FEWBIT_INLINE { total[t] = V::add_floats(total[t], V::multiply_floats(sum[t], scale)); });
    }
    each<T>([&](auto t) FEWBIT_INLINE { V::store_floats(total[t], sums + 16 * t + n * V::LANES); });
  });
  leave_block<T>(w, block, sums, y);
}

template <class V, int BITS, int T, bool FLOATS>
inline void grouped_tiles(const Grouped& w, int block, Tokens x, float* y) {
  while (x.rows >= T) {
    if constexpr (FLOATS) grouped_float_tile<V, BITS, T>(w, block, x, y);
    else grouped_tile<V, BITS, T>(w, block, x, y);
    x.rows -= T, y += (ptrdiff_t)T * w.out;
    if constexpr (FLOATS) x.floats += T * w.in();
    else x.codes += T * w.in(), x.scale += T * w.groups, x.sum += T * w.groups;
  }
  if constexpr (T > 1) grouped_tiles<V, BITS, T / 2, FLOATS>(w, block, x, y);
}

// Rows of blocks first to last - 1, all tokens. y: [rows][out]
template <class V, bool FLOATS>
void grouped(const Grouped& w, const Tokens& x, int first, int last, float* y) {
  for (int b = first; b < last; b++) switch (w.bits) {
      case 8: grouped_tiles<V, 8, V::TILE, FLOATS>(w, b, x, y); break;
      case 4: grouped_tiles<V, 4, V::TILE, FLOATS>(w, b, x, y); break;
      case 3: grouped_tiles<V, 3, V::TILE, FLOATS>(w, b, x, y); break;
      default: grouped_tiles<V, 2, V::TILE, FLOATS>(w, b, x, y); break;
    }
}

// One group of one token -> codes within +-127, their scale (largest magnitude / 127) and sum. NaN and infinity: scale NaN. A
// group below 2^-80 is zero. A float's magnitude orders as its bits do, NaN above all.
inline void quantize_group(const float* x, int n, int8_t* codes, float& scale, int32_t& sum) {
  uint32_t most = 0;
  for (int i = 0; i < n; i++) {
    const uint32_t magnitude = std::bit_cast<uint32_t>(x[i]) & 0x7FFFFFFF;
    most = magnitude > most ? magnitude : most;
  }
  const float largest = std::bit_cast<float>(most);
  scale = sum = 0;
  const bool finite = most < 0x7F800000, zero = !finite || largest < 0x1p-80f;
  if (!finite) scale = std::bit_cast<float>(0x7FC00000);
  if (zero) return (void)memset(codes, 0, (size_t)n);
  scale = largest / 127.0f;
  const float inverse = 127.0f / largest;
  int32_t total = 0;
  for (int i = 0; i < n; i++) {  // adding 1.5 * 2^23 rounds half to even and leaves the integer in the low bits
    const int32_t q = (int32_t)(std::bit_cast<uint32_t>(x[i] * inverse + 12582912.0f) - 0x4B400000u);
    codes[i] = (int8_t)q;
    total += q;
  }
  sum = total;
}

}  // namespace
}  // namespace fewbit
