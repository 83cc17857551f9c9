// What is done to every element alike: plain loops that the compiler turns into this instruction set's vectors.
//
// Rounding half to even, in S4 and S5, by one addition: |v| < 2^52 there, v + 1.5 * 2^52 is rounded to an integer by the
// addition itself, and where |v| >= 2^51 made it one off, the result saturates anyway.
// -ffp-contract=off keeps the float operations apart, as S1 and S7 demand.
#pragma once
#include "kernels.h"

namespace fewbit {
namespace {

template <class T> constexpr double LOWEST = sizeof(T) == 1 ? (T(-1) < 0 ? -128 : 0) : (T(-1) < 0 ? -32768 : 0);
template <class T> constexpr double HIGHEST = LOWEST<T> + (sizeof(T) == 1 ? 255 : 65535);

constexpr double MAGIC = 6755399441055744.0;  // 1.5 * 2^52

template <class T>
inline T saturate(double v, double zero_point) {
  v = (v + MAGIC) - MAGIC + zero_point;
  v = v < LOWEST<T> ? LOWEST<T> : v;
  v = v > HIGHEST<T> ? HIGHEST<T> : v;
  return (T)(int32_t)v;
}

// f called with a value of the type that t names
template <class F>
inline void typed(Type t, F f) {
  switch (t) {
    case Type::u8: return f(uint8_t{});
    case Type::i8: return f(int8_t{});
    case Type::u16: return f(uint16_t{});
    default: return f(int16_t{});
  }
}

constexpr ptrdiff_t CHUNK = 64;  // elements on their way, as doubles

// out[i] = x[i] - zero
inline void load_codes(Type t, const char* x, int32_t zero, double* __restrict out, ptrdiff_t n) {
  typed(t, [&](auto kind) {
    const auto* p = reinterpret_cast<const decltype(kind)*>(x);
    for (ptrdiff_t i = 0; i < n; i++) out[i] = (double)((int32_t)p[i] - zero);
  });
}

inline void store_codes(Type t, const double* __restrict v, double zero, char* y, ptrdiff_t n) {
  typed(t, [&](auto kind) {
    auto* p = reinterpret_cast<decltype(kind)*>(y);
    for (ptrdiff_t i = 0; i < n; i++) p[i] = saturate<decltype(kind)>(v[i], zero);
  });
}

inline ptrdiff_t chunk(ptrdiff_t left) { return left < CHUNK ? left : CHUNK; }

inline void rescale_flat(const Rescale& s, const char* a, char* y, ptrdiff_t n) {
  alignas(64) double v[CHUNK];
  for (ptrdiff_t j = 0; j < n; j += CHUNK) {
    const ptrdiff_t m = chunk(n - j);
    load_codes(s.type_a, a + j * size_of(s.type_a), s.zero_a, v, m);
    for (ptrdiff_t i = 0; i < m; i++) v[i] *= s.ratio_a;
    store_codes(s.type, v, s.zero_point, y + j * size_of(s.type), m);
  }
}

template <class F>
inline void combine(const Rescale& s, const char* a, const char* b, char* y, ptrdiff_t n, F f) {
  alignas(64) double v[CHUNK], w[CHUNK];
  for (ptrdiff_t j = 0; j < n; j += CHUNK) {
    const ptrdiff_t m = chunk(n - j);
    load_codes(s.type_a, a + j * size_of(s.type_a), s.zero_a, v, m);
    load_codes(s.type_b, b + j * size_of(s.type_b), s.zero_b, w, m);
    for (ptrdiff_t i = 0; i < m; i++) v[i] = f(v[i], w[i]);
    store_codes(s.type, v, s.zero_point, y + j * size_of(s.type), m);
  }
}

// Both products and their sum are exact in a double: |code| < 2^17, |ratio * 2^s| <= 2^22, one shift s for both (S5).
inline void add_flat(const Rescale& s, const char* a, const char* b, char* y, ptrdiff_t n) {
  const double ra = s.ratio_a, rb = s.ratio_b;
  combine(s, a, b, y, n, [=](double p, double q) { return p * ra + q * rb; });
}

inline void multiply_flat(const Rescale& s, const char* a, const char* b, char* y, ptrdiff_t n) {
  const double ratio = s.ratio_a;
  combine(s, a, b, y, n, [=](double p, double q) { return p * q * ratio; });
}

// S1: divide, round half to even, clamp, add the zero point; NaN becomes the zero point (bindings refuse it in an observation).
template <class Y, bool MULTIPLY>
inline void quantize_as(const Quantize& s, const float* __restrict x, Y* __restrict y, ptrdiff_t n) {
  const int32_t zero = s.zero_point;
  const float scale = s.scale, inverse = 1.0f / s.scale;
  const float low = (float)LOWEST<Y> - (float)zero, high = (float)HIGHEST<Y> - (float)zero;
  for (ptrdiff_t i = 0; i < n; i++) {
    float v = MULTIPLY ? x[i] * inverse : x[i] / scale;
    v = v == v ? v : 0.0f;
    v = v < low ? low : v;
    v = v > high ? high : v;
    y[i] = (Y)((int32_t)((v + 12582912.0f) - 12582912.0f) + zero);  // 1.5 * 2^23: |v| < 2^17
  }
}

inline void quantize_flat(const Quantize& s, const float* x, char* y, ptrdiff_t n) {
  typed(s.type, [&](auto kind) {
    auto* p = reinterpret_cast<decltype(kind)*>(y);
    if (s.by_multiplication) quantize_as<decltype(kind), true>(s, x, p, n);
    else quantize_as<decltype(kind), false>(s, x, p, n);
  });
}

inline void dequantize_flat(Type t, const char* x, int zero, const float* scale, bool per_element, float* y, ptrdiff_t n) {
  typed(t, [&](auto kind) {
    const auto* p = reinterpret_cast<const decltype(kind)*>(x);
    const float one = scale[0];
    if (per_element) for (ptrdiff_t i = 0; i < n; i++) y[i] = (float)((int32_t)p[i] - zero) * scale[i];
    else for (ptrdiff_t i = 0; i < n; i++) y[i] = (float)((int32_t)p[i] - zero) * one;
  });
}

template <class T>
inline bool load_flat(const T* __restrict x, float* __restrict y, ptrdiff_t n) {
  uint32_t bad = 0;  // in integers, which every compiler adds up in vectors
  for (ptrdiff_t i = 0; i < n; i++) {
    const float v = (float)x[i];
    uint32_t bits;
    __builtin_memcpy(&bits, &v, 4);
    y[i] = v;
    bad |= (bits & 0x7fffffffu) > 0x7f800000u;
  }
  return bad;
}

inline void widen_flat(Type t, const char* x, int16_t* y, ptrdiff_t n) {
  const auto* u = reinterpret_cast<const uint8_t*>(x);
  const auto* s = reinterpret_cast<const int8_t*>(x);
  if (t == Type::u8) for (ptrdiff_t i = 0; i < n; i++) y[i] = u[i];
  else for (ptrdiff_t i = 0; i < n; i++) y[i] = s[i];
}

// NumPy's minimum and maximum: NaN wins. a[i] op b[i], each its own loop.
inline void binary_flat(Binary op, const float* __restrict a, const float* __restrict b, float* __restrict y, ptrdiff_t n) {
  switch (op) {
    case Binary::add: for (ptrdiff_t i = 0; i < n; i++) y[i] = a[i] + b[i]; break;
    case Binary::sub: for (ptrdiff_t i = 0; i < n; i++) y[i] = a[i] - b[i]; break;
    case Binary::mul: for (ptrdiff_t i = 0; i < n; i++) y[i] = a[i] * b[i]; break;
    case Binary::div: for (ptrdiff_t i = 0; i < n; i++) y[i] = a[i] / b[i]; break;
    case Binary::min: for (ptrdiff_t i = 0; i < n; i++) y[i] = a[i] != a[i] || a[i] < b[i] ? a[i] : b[i]; break;
    case Binary::max: for (ptrdiff_t i = 0; i < n; i++) y[i] = a[i] != a[i] || a[i] > b[i] ? a[i] : b[i]; break;
  }
}

}  // namespace
}  // namespace fewbit
