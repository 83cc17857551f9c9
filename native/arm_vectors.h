// 128-bit vectors of 64-bit Arm, shared by the files that differ only in the 8-bit product.
#pragma once
#include <arm_neon.h>

#include "kernels_of.h"

namespace fewbit {
namespace {

struct Vector128 {
  static constexpr int LANES = 4, ROWS = 4, COLS = 4, TOGETHER = 4, TILE = 4, BYTE_ZERO = 128;
  static constexpr bool WIDE = false;
  using Codes = int32x4_t;
  using Floats = float32x4_t;

  static Codes splat(uint32_t v) { return vdupq_n_s32((int32_t)v); }
  static Codes load(const void* p) { return vreinterpretq_s32_u8(vld1q_u8(static_cast<const uint8_t*>(p))); }
  static Codes broadcast(const char* p) {
    uint32_t v;
    __builtin_memcpy(&v, p, 4);
    return splat(v);
  }
  static Codes flip(Codes x, Codes f) { return veorq_s32(x, f); }
  static Codes add(Codes a, Codes b) { return vaddq_s32(a, b); }
  static Codes dot2(Codes s, Codes x, Codes w) {
    const int16x8_t a = vreinterpretq_s16_s32(x), b = vreinterpretq_s16_s32(w);
    return vaddq_s32(s, vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b)));
  }
  template <int SHIFT, int MASK>
  static Codes field(Codes w) {
    uint32x4_t bits = vreinterpretq_u32_s32(w);
    if constexpr (SHIFT > 0) bits = vshrq_n_u32(bits, SHIFT);
    return vandq_s32(vreinterpretq_s32_u32(bits), vreinterpretq_s32_u8(vdupq_n_u8(MASK)));
  }
  template <int N>
  static Codes shift_left(Codes w) { return vshlq_n_s32(w, N); }
  template <int J>
  static Codes lowest_byte(Codes w) {
    uint32x4_t bits = vreinterpretq_u32_s32(w);
    if constexpr (J > 0) bits = vshrq_n_u32(bits, 8 * J);
    return vandq_s32(vreinterpretq_s32_u32(bits), vdupq_n_s32(255));
  }
  static Codes either(Codes a, Codes b) { return vorrq_s32(a, b); }
  static Codes load_bytes(const uint8_t* p) {
    uint32_t four;
    __builtin_memcpy(&four, p, 4);
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four))))));
  }
  static Codes subtract(Codes a, Codes b) { return vsubq_s32(a, b); }
  static Codes multiply(Codes a, Codes b) { return vmulq_s32(a, b); }
  static int8x16_t bytes(Codes c) { return vreinterpretq_s8_s32(c); }
  static int8x16_t around_128(Codes w) { return veorq_s8(bytes(w), vdupq_n_s8(-128)); }  // w - 128
  template <class T>
  static void own(T& v) { asm("" : "+w"(v)); }
  static void keep(Codes& x, Codes& w) { asm volatile("" : "+w"(x), "+w"(w)); }

  // |acc * ratio| < 2^31 (proven when packed): the sum with 1.5 * 2^52 has the rounded result in its low 32 bits.
  static Codes requantize(Codes s, const double* ratio, int zero) {
    const float64x2_t magic = vdupq_n_f64(MAGIC);
    const float64x2_t low = vfmaq_f64(magic, vcvtq_f64_s64(vmovl_s32(vget_low_s32(s))), vld1q_f64(ratio));
    const float64x2_t high = vfmaq_f64(magic, vcvtq_f64_s64(vmovl_high_s32(s)), vld1q_f64(ratio + 2));
    return vaddq_s32(vuzp1q_s32(vreinterpretq_s32_f64(low), vreinterpretq_s32_f64(high)), vdupq_n_s32(zero));
  }
  static void store(Codes c, Type type, char* y) {
    if (type == Type::u16) return vst1_u16(reinterpret_cast<uint16_t*>(y), vqmovun_s32(c));
    const int16x4_t words = vqmovn_s32(c);
    if (type == Type::i16) return vst1_s16(reinterpret_cast<int16_t*>(y), words);
    const int16x8_t twice = vcombine_s16(words, words);
    const uint8x8_t bytes = type == Type::u8 ? vqmovun_s16(twice) : vreinterpret_u8_s8(vqmovn_s16(twice));
    const uint32_t four = vget_lane_u32(vreinterpret_u32_u8(bytes), 0);
    __builtin_memcpy(y, &four, 4);
  }
  static void store_bytes(Codes a, Codes b, Codes c, Codes d, Type type, char* y) {
    const int16x8_t low = vqmovn_high_s32(vqmovn_s32(a), b), high = vqmovn_high_s32(vqmovn_s32(c), d);
    if (type == Type::u8) vst1q_u8(reinterpret_cast<uint8_t*>(y), vqmovun_high_s16(vqmovun_s16(low), high));
    else vst1q_s8(reinterpret_cast<int8_t*>(y), vqmovn_high_s16(vqmovn_s16(low), high));
  }
  static void leave(Codes s, const float* scale, float* y) { vst1q_f32(y, vmulq_f32(vcvtq_f32_s32(s), vld1q_f32(scale))); }

  static Floats as_floats(Codes c) { return vreinterpretq_f32_s32(c); }
  static Floats load_floats(const float* p) { return vld1q_f32(p); }
  static Floats add_floats(Floats a, Floats b) { return vaddq_f32(a, b); }
  static Floats multiply_add(Floats s, Floats x, Floats w) { return vfmaq_f32(s, x, w); }
  static void store_floats(Floats f, float* y) { vst1q_f32(y, f); }
  static Floats load_half(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
  static Floats to_floats(Codes c) { return vcvtq_f32_s32(c); }
  static Floats splat_float(float v) { return vdupq_n_f32(v); }
  static Floats multiply_floats(Floats a, Floats b) { return vmulq_f32(a, b); }
};

struct Shorts128 {
  static constexpr int SHORTS = 8;
  using Codes = int16x8_t;

  // A coefficient's two bytes come from a shuffle each over 32 entries.
  struct Segments {
    uint8x16x2_t low[5], high[5];
    explicit Segments(const Table& t) {
      for (int p = 0; p <= DEGREE; p++) {
        const uint8_t* from = t.planes + p * 2 * SEGMENTS;
        low[p] = {vld1q_u8(from), vld1q_u8(from + 16)};
        high[p] = {vld1q_u8(from + 32), vld1q_u8(from + 48)};
      }
    }
    template <int POWER>
    Codes lookup(uint8x8_t i) const {
      const uint8x16_t both = vcombine_u8(i, i);
      const uint8x16_t l = vqtbl2q_u8(low[POWER], both), h = vqtbl2q_u8(high[POWER], both);
      return vreinterpretq_s16_u8(vzip1q_u8(l, h));
    }
  };
  static Codes load(const int16_t* p) { return vld1q_s16(p); }
  static void store(int16_t* p, Codes h) { vst1q_s16(p, h); }
  static Codes offset(Codes x) { return veorq_s16(x, vdupq_n_s16(-32768)); }
  static Codes place(Codes u) { return veorq_s16(vshlq_n_s16(u, 5), vdupq_n_s16(-32768)); }
  static uint8x8_t segment(Codes u) { return vmovn_u16(vshrq_n_u16(vreinterpretq_u16_s16(u), 11)); }
  static Codes mulhrs(Codes a, Codes b) { return vqrdmulhq_s16(a, b); }
  static Codes shift_right(Codes v, int by) { return vshlq_s16(v, vdupq_n_s16((int16_t)-by)); }
  static Codes add(Codes a, Codes b) { return vaddq_s16(a, b); }
  static Codes add_saturating(Codes a, Codes b) { return vqaddq_s16(a, b); }
  static Codes rounding_shift(Codes h, int by) {
    const Codes odd = vandq_s16(shift_right(h, by), vdupq_n_s16(1));
    const Codes half = vdupq_n_s16((int16_t)((1 << (by - 1)) - 1));
    return shift_right(vqaddq_s16(vqaddq_s16(h, half), odd), by);
  }
  static void store_bytes(char* y, Codes v) { vst1_s8(reinterpret_cast<int8_t*>(y), vqmovn_s16(v)); }
};

}  // namespace
}  // namespace fewbit
