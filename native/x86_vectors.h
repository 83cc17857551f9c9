// 256-bit vectors of AVX2 and FMA, shared by the files that differ only in the 8-bit product.
#pragma once
#include <immintrin.h>

#include "kernels_of.h"

namespace fewbit {
namespace {

struct Vector256 {
  static constexpr int LANES = 8, COLS = 4, TOGETHER = 4, TILE = 4;
  static constexpr bool HAS_BYTES = true, WIDE = false;
  using Codes = __m256i;
  using Floats = __m256;

  static Codes splat(uint32_t v) { return _mm256_set1_epi32((int)v); }
  static Codes load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static Codes broadcast(const char* p) { return _mm256_castps_si256(_mm256_broadcast_ss(reinterpret_cast<const float*>(p))); }
  static Codes flip(Codes x, Codes f) { return _mm256_xor_si256(x, f); }
  static Codes add(Codes a, Codes b) { return _mm256_add_epi32(a, b); }
  static Codes high_nibbles(Codes w) { return _mm256_and_si256(w, _mm256_set1_epi8((char)0xF0)); }
  template <int N>
  static Codes shift_left(Codes w) { return _mm256_slli_epi32(w, N); }
  template <int N>
  static Codes shift_right(Codes s) { return _mm256_srai_epi32(s, N); }
  static Codes dot2(Codes s, Codes x, Codes w) { return _mm256_add_epi32(s, _mm256_madd_epi16(x, w)); }
  template <int SHIFT, int MASK>
  static Codes field(Codes w) { return _mm256_and_si256(SHIFT ? _mm256_srli_epi32(w, SHIFT) : w, _mm256_set1_epi8(MASK)); }
  template <int J>
  static Codes lowest_byte(Codes w) { return _mm256_and_si256(_mm256_srli_epi32(w, 8 * J), _mm256_set1_epi32(255)); }
  static Codes either(Codes a, Codes b) { return _mm256_or_si256(a, b); }
  static Codes load_bytes(const uint8_t* p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))); }
  static Codes subtract(Codes a, Codes b) { return _mm256_sub_epi32(a, b); }
  static Codes multiply(Codes a, Codes b) { return _mm256_mullo_epi32(a, b); }
  template <class T>
  static void own(T& v) { asm("" : "+x"(v)); }
  static void keep(Codes& x, Codes& w) { asm volatile("" : "+x"(x), "+x"(w)); }

  // |acc * ratio| < 2^31 (proven when packed): the sum with 1.5 * 2^52 has the rounded result in its low 32 bits.
  static Codes requantize(Codes s, const double* ratio, int zero) {
    const __m256d magic = _mm256_set1_pd(MAGIC);
    const __m256d low = _mm256_fmadd_pd(_mm256_cvtepi32_pd(_mm256_castsi256_si128(s)), _mm256_loadu_pd(ratio), magic);
    const __m256d high = _mm256_fmadd_pd(_mm256_cvtepi32_pd(_mm256_extracti128_si256(s, 1)), _mm256_loadu_pd(ratio + 4), magic);
    const __m256 both = _mm256_shuffle_ps(_mm256_castpd_ps(low), _mm256_castpd_ps(high), 0x88);
    return _mm256_add_epi32(_mm256_permute4x64_epi64(_mm256_castps_si256(both), 0xD8), _mm256_set1_epi32(zero));
  }
  static void store(Codes c, Type type, char* y) {
    const __m128i a = _mm256_castsi256_si128(c), b = _mm256_extracti128_si256(c, 1);
    if (type == Type::u16) return _mm_storeu_si128(reinterpret_cast<__m128i*>(y), _mm_packus_epi32(a, b));
    const __m128i words = _mm_packs_epi32(a, b);
    if (type == Type::i16) return _mm_storeu_si128(reinterpret_cast<__m128i*>(y), words);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(y), type == Type::u8 ? _mm_packus_epi16(words, words) : _mm_packs_epi16(words, words));
  }
  // Packing works inside the two 128-bit halves: the last shuffle puts them in order.
  static void store_bytes(Codes a, Codes b, Codes c, Codes d, Type type, char* y) {
    const Codes low = _mm256_packs_epi32(a, b), high = _mm256_packs_epi32(c, d);
    const Codes bytes = type == Type::u8 ? _mm256_packus_epi16(low, high) : _mm256_packs_epi16(low, high);
    const Codes order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), _mm256_permutevar8x32_epi32(bytes, order));
  }
  static void leave(Codes s, const float* scale, float* y) {
    _mm256_storeu_ps(y, _mm256_mul_ps(_mm256_cvtepi32_ps(s), _mm256_loadu_ps(scale)));
  }

  static Floats as_floats(Codes c) { return _mm256_castsi256_ps(c); }
  static Floats load_floats(const float* p) { return _mm256_loadu_ps(p); }
  static Floats add_floats(Floats a, Floats b) { return _mm256_add_ps(a, b); }
  static Floats multiply_add(Floats s, Floats x, Floats w) { return _mm256_fmadd_ps(x, w, s); }
  static void store_floats(Floats f, float* y) { _mm256_storeu_ps(y, f); }
  static Floats load_half(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static Floats to_floats(Codes c) { return _mm256_cvtepi32_ps(c); }
  static Floats splat_float(float v) { return _mm256_set1_ps(v); }
  static Floats multiply_floats(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
};

struct Shorts256 {
  static constexpr int SHORTS = 16;
  using Codes = __m256i;

  // A coefficient's two bytes come from two shuffles each: 16 entries a shuffle, and an index with bit 7 set gives 0.
  struct Index { Codes low, high; };
  struct Segments {
    const uint8_t* planes;
    explicit Segments(const Table& t) : planes(t.planes) {}
    static Codes twice(const uint8_t* p) { return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
    template <int POWER>
    Codes lookup(Index i) const {
      const uint8_t* t = planes + POWER * 2 * SEGMENTS;
      const Codes l = _mm256_or_si256(_mm256_shuffle_epi8(twice(t), i.low), _mm256_shuffle_epi8(twice(t + 16), i.high));
      const Codes h = _mm256_or_si256(_mm256_shuffle_epi8(twice(t + 32), i.low), _mm256_shuffle_epi8(twice(t + 48), i.high));
      return _mm256_or_si256(_mm256_and_si256(l, _mm256_set1_epi16(255)), _mm256_slli_epi16(h, 8));
    }
  };
  static Codes load(const int16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static void store(int16_t* p, Codes h) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), h); }
  static Codes offset(Codes x) { return _mm256_xor_si256(x, _mm256_set1_epi16(-32768)); }
  static Codes place(Codes u) { return _mm256_xor_si256(_mm256_slli_epi16(u, 5), _mm256_set1_epi16(-32768)); }
  static Index segment(Codes u) {
    Codes i = _mm256_srli_epi16(u, 11);
    i = _mm256_or_si256(i, _mm256_slli_epi16(i, 8));  // the same index for both bytes
    return {_mm256_add_epi8(i, _mm256_set1_epi8(0x70)), _mm256_sub_epi8(i, _mm256_set1_epi8(16))};
  }
  static Codes mulhrs(Codes a, Codes b) { return _mm256_mulhrs_epi16(a, b); }
  static Codes shift_right(Codes v, int by) { return _mm256_sra_epi16(v, _mm_cvtsi32_si128(by)); }
  static Codes add(Codes a, Codes b) { return _mm256_add_epi16(a, b); }
  static Codes add_saturating(Codes a, Codes b) { return _mm256_adds_epi16(a, b); }
  static Codes rounding_shift(Codes h, int by) {
    const Codes odd = _mm256_and_si256(_mm256_sra_epi16(h, _mm_cvtsi32_si128(by)), _mm256_set1_epi16(1));
    const Codes half = _mm256_set1_epi16((short)((1 << (by - 1)) - 1));
    return _mm256_sra_epi16(_mm256_adds_epi16(_mm256_adds_epi16(h, half), odd), _mm_cvtsi32_si128(by));
  }
  static void store_bytes(char* y, Codes v) {
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y), bytes);
  }
};

}  // namespace
}  // namespace fewbit
