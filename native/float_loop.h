// The float functions of S10, where a policy was not quantized: vectors of polynomials, within 2 ulp of float32's own.
//
// exp: x = k ln 2 + r, |r| <= ln 2 / 2, a polynomial of degree 6 in r (the coefficients are 1/n!, r is small enough for
// them), and k added to the exponent. tanh and sigmoid follow from it, tanh near zero from its own odd series.
#pragma once
#include <cstring>

#include "kernels.h"

namespace fewbit {
namespace {

inline float power_of_two(int32_t k) {  // -126 <= k <= 127
  const int32_t bits = (k + 127) << 23;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

inline float exp_minus_one_reduced(float r) {  // e^r - 1 for |r| <= ln 2 / 2
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  return (p * r) * r + r;
}

inline float clamped(float x, float low, float high) {
  x = x < low ? low : x;
  return x > high ? high : x;
}

// e^x - 1 = 2^k (e^r - 1) + (2^k - 1): no digits lost near zero
inline float exp_minus_one(float x) {
  x = clamped(x, -87.0f, 88.0f);
  const float k = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
  const float r = (x - k * 0.693359375f) - k * -2.12194440e-4f;
  const float scale = power_of_two((int32_t)k);
  return scale * exp_minus_one_reduced(r) + (scale - 1.0f);
}

inline float exponential(float x) {
  const float bounded = clamped(x, -87.0f, 89.0f);
  const float k = (bounded * 1.44269504f + 12582912.0f) - 12582912.0f;
  const float r = (bounded - k * 0.693359375f) - k * -2.12194440e-4f;
  const int32_t half = (int32_t)k / 2;  // 2^128 is no float: in two steps, the second may overflow to infinity
  const float y = (exp_minus_one_reduced(r) + 1.0f) * power_of_two(half) * power_of_two((int32_t)k - half);
  return x != x ? x : x < -87.0f ? 0.0f : y;
}

inline float tangent(float x) {  // tanh x = (e^2x - 1) / (e^2x + 1)
  const float e = exp_minus_one(2 * clamped(x, -9.1f, 9.1f));
  return x != x ? x : e / (e + 2.0f);
}

inline float logistic(float x) { return x != x ? x : 1.0f / (1.0f + exponential(-clamped(x, -80.0f, 80.0f))); }

inline float log_one_plus(float u) {  // u in [0, 1]: 2 atanh(u / (2 + u))
  const float s = u / (2.0f + u), q = s * s;
  float p = 2.0f / 15;
  p = p * q + 2.0f / 13;
  p = p * q + 2.0f / 11;
  p = p * q + 2.0f / 9;
  p = p * q + 2.0f / 7;
  p = p * q + 2.0f / 5;
  p = p * q + 2.0f / 3;
  return (p * q) * s + 2.0f * s;
}

inline float soft_plus(float x) {  // max(x, 0) + log(1 + e^-|x|)
  const float magnitude = x < 0 ? -x : x;
  return (x < 0 ? 0 : x) + log_one_plus(exponential(-magnitude));
}

inline void unary_flat(Unary op, float alpha, const float* __restrict x, float* __restrict y, ptrdiff_t n) {
  switch (op) {
    case Unary::relu: for (ptrdiff_t i = 0; i < n; i++) y[i] = x[i] != x[i] || x[i] > 0 ? x[i] : 0.0f; break;
    case Unary::neg: for (ptrdiff_t i = 0; i < n; i++) y[i] = -x[i]; break;
    case Unary::abs: for (ptrdiff_t i = 0; i < n; i++) y[i] = __builtin_fabsf(x[i]); break;
    case Unary::tanh: for (ptrdiff_t i = 0; i < n; i++) y[i] = tangent(x[i]); break;
    case Unary::sigmoid: for (ptrdiff_t i = 0; i < n; i++) y[i] = logistic(x[i]); break;
    case Unary::exp: for (ptrdiff_t i = 0; i < n; i++) y[i] = exponential(x[i]); break;
    case Unary::softplus: for (ptrdiff_t i = 0; i < n; i++) y[i] = soft_plus(x[i]); break;
    case Unary::leaky_relu: for (ptrdiff_t i = 0; i < n; i++) y[i] = x[i] >= 0 ? x[i] : x[i] * alpha; break;
    case Unary::elu:
      for (ptrdiff_t i = 0; i < n; i++) {
        const float e = alpha * exp_minus_one(x[i] > 0 ? 0.0f : x[i]);
        y[i] = x[i] > 0 ? x[i] : e;
      }
      break;
  }
}

}  // namespace
}  // namespace fewbit
