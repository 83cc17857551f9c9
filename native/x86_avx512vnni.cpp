// AVX-512 with VNNI (F, BW, DQ, VL): 512-bit vectors, the dot product of four bytes, tables in two registers.
#include <immintrin.h>

#include "kernels_of.h"

namespace fewbit {
namespace {

struct Vector {
  static constexpr int LANES = 16, ROWS = 6, COLS = 4, BEST = 4, TOGETHER = 4, TILE = 8;
  static constexpr bool HAS_BYTES = true, HAS_NIBBLES = true, WIDE = true;
  using Codes = __m512i;
  using Floats = __m512;

  static Codes splat(uint32_t v) { return _mm512_set1_epi32((int)v); }
  static Codes load(const void* p) { return _mm512_loadu_si512(p); }
  static Codes broadcast(const char* p) {
    int v;
    __builtin_memcpy(&v, p, 4);
    return _mm512_set1_epi32(v);
  }
  static Codes flip(Codes x, Codes f) { return _mm512_xor_si512(x, f); }
  static Codes add(Codes a, Codes b) { return _mm512_add_epi32(a, b); }
  static Codes dot4(Codes s, Codes x, Codes w) { return _mm512_dpbusd_epi32(s, x, w); }
  static Codes high_nibbles(Codes w) { return _mm512_and_si512(w, _mm512_set1_epi8((char)0xF0)); }
  template <int N>
  static Codes shift_left(Codes w) { return _mm512_slli_epi32(w, N); }
  template <int N>
  static Codes shift_right(Codes s) { return _mm512_srai_epi32(s, N); }
  static Codes dot2(Codes s, Codes x, Codes w) { return _mm512_dpwssd_epi32(s, x, w); }
  static constexpr int BYTE_ZERO = 0;
  static Codes small_dot(Codes s, Codes w0, Codes w1, const char* x0, const char* x1) {
    return dot4(dot4(s, w0, broadcast(x0)), w1, broadcast(x1));
  }
  static Codes byte_dot(Codes s, Codes w, const char* x) { return dot4(s, w, broadcast(x)); }
  template <int SHIFT, int MASK>
  static Codes field(Codes w) { return _mm512_and_si512(SHIFT ? _mm512_srli_epi32(w, SHIFT) : w, _mm512_set1_epi8(MASK)); }
  template <int J>
  static Codes lowest_byte(Codes w) { return _mm512_and_si512(_mm512_srli_epi32(w, 8 * J), _mm512_set1_epi32(255)); }
  static Codes either(Codes a, Codes b) { return _mm512_or_si512(a, b); }
  static Codes load_bytes(const uint8_t* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static Codes subtract(Codes a, Codes b) { return _mm512_sub_epi32(a, b); }
  static Codes multiply(Codes a, Codes b) { return _mm512_mullo_epi32(a, b); }
  static Codes best_dot(Codes s, Codes x, Codes w) { return dot4(s, x, w); }
  template <class T>
  static void own(T& v) { asm("" : "+v"(v)); }
  static void keep(Codes& x, Codes& w) { asm volatile("" : "+v"(x), "+v"(w)); }

  // |acc * ratio| < 2^31 (proven when packed): the sum with 1.5 * 2^52 has the rounded result in its low 32 bits.
  static Codes requantize(Codes s, const double* ratio, int zero) {
    const __m512d magic = _mm512_set1_pd(MAGIC);
    const __m512d low = _mm512_fmadd_pd(_mm512_cvtepi32_pd(_mm512_castsi512_si256(s)), _mm512_loadu_pd(ratio), magic);
    const __m512d high = _mm512_fmadd_pd(_mm512_cvtepi32_pd(_mm512_extracti64x4_epi64(s, 1)), _mm512_loadu_pd(ratio + 8), magic);
    const Codes even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    return _mm512_add_epi32(_mm512_permutex2var_epi32(_mm512_castpd_si512(low), even, _mm512_castpd_si512(high)), splat((uint32_t)zero));
  }
  static void store(Codes c, Type type, char* y) {
    auto* bytes = reinterpret_cast<__m128i*>(y);
    auto* words = reinterpret_cast<__m256i*>(y);
    switch (type) {
      case Type::u8: return _mm_storeu_si128(bytes, _mm512_cvtusepi32_epi8(_mm512_max_epi32(c, _mm512_setzero_si512())));
      case Type::i8: return _mm_storeu_si128(bytes, _mm512_cvtsepi32_epi8(c));
      case Type::u16: return _mm256_storeu_si256(words, _mm512_cvtusepi32_epi16(_mm512_max_epi32(c, _mm512_setzero_si512())));
      default: return _mm256_storeu_si256(words, _mm512_cvtsepi32_epi16(c));
    }
  }
  // Packing works inside the four 128-bit quarters: the last shuffle puts them in order.
  static void store_bytes(Codes a, Codes b, Codes c, Codes d, Type type, char* y) {
    const Codes low = _mm512_packs_epi32(a, b), high = _mm512_packs_epi32(c, d);
    const Codes bytes = type == Type::u8 ? _mm512_packus_epi16(low, high) : _mm512_packs_epi16(low, high);
    const Codes order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    _mm512_storeu_si512(y, _mm512_permutexvar_epi32(order, bytes));
  }
  static void leave(Codes s, const float* scale, float* y) {
    _mm512_storeu_ps(y, _mm512_mul_ps(_mm512_cvtepi32_ps(s), _mm512_loadu_ps(scale)));
  }

  static Floats as_floats(Codes c) { return _mm512_castsi512_ps(c); }
  static Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
  static Floats add_floats(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static Floats multiply_add(Floats s, Floats x, Floats w) { return _mm512_fmadd_ps(x, w, s); }
  static void store_floats(Floats f, float* y) { _mm512_storeu_ps(y, f); }
  static Floats load_half(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static Floats to_floats(Codes c) { return _mm512_cvtepi32_ps(c); }
  static Floats splat_float(float v) { return _mm512_set1_ps(v); }
  static Floats multiply_floats(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
};

struct Segments {
  __m512i c[5];  // the 32 segments of a power are one register
  explicit Segments(const Table& t) {
    for (int p = 0; p <= DEGREE; p++) c[p] = _mm512_loadu_si512(t.c + p * SEGMENTS);
  }
  template <int POWER>
  __m512i lookup(__m512i i) const { return _mm512_permutexvar_epi16(i, c[POWER]); }
  template <int POWER>
  __m256i lookup(__m256i i) const { return _mm512_castsi512_si256(lookup<POWER>(_mm512_castsi256_si512(i))); }
};

struct Half {
  static constexpr int SHORTS = 16;
  using Codes = __m256i;
  using Segments = fewbit::Segments;
  static Codes load(const int16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static void store(int16_t* p, Codes h) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), h); }
  static Codes offset(Codes x) { return _mm256_xor_si256(x, _mm256_set1_epi16(-32768)); }
  static Codes place(Codes u) { return _mm256_xor_si256(_mm256_slli_epi16(u, 5), _mm256_set1_epi16(-32768)); }
  static Codes segment(Codes u) { return _mm256_srli_epi16(u, 11); }
  static Codes mulhrs(Codes a, Codes b) { return _mm256_mulhrs_epi16(a, b); }
  static Codes shift_right(Codes v, int by) { return _mm256_sra_epi16(v, _mm_cvtsi32_si128(by)); }
  static Codes add(Codes a, Codes b) { return _mm256_add_epi16(a, b); }
  static Codes add_saturating(Codes a, Codes b) { return _mm256_adds_epi16(a, b); }
  static Codes rounding_shift(Codes h, int by) {
    const Codes odd = _mm256_and_si256(_mm256_sra_epi16(h, _mm_cvtsi32_si128(by)), _mm256_set1_epi16(1));
    const Codes half = _mm256_set1_epi16((short)((1 << (by - 1)) - 1));
    return _mm256_sra_epi16(_mm256_adds_epi16(_mm256_adds_epi16(h, half), odd), _mm_cvtsi32_si128(by));
  }
  static void store_bytes(char* y, Codes v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(y), _mm256_cvtsepi16_epi8(v)); }
};

struct Shorts {
  static constexpr int SHORTS = 32;
  using Rest = Half;
  using Codes = __m512i;
  using Segments = fewbit::Segments;
  static Codes load(const int16_t* p) { return _mm512_loadu_si512(p); }
  static void store(int16_t* p, Codes h) { _mm512_storeu_si512(p, h); }
  static Codes offset(Codes x) { return _mm512_xor_si512(x, _mm512_set1_epi16(-32768)); }
  static Codes place(Codes u) { return _mm512_xor_si512(_mm512_slli_epi16(u, 5), _mm512_set1_epi16(-32768)); }
  static Codes segment(Codes u) { return _mm512_srli_epi16(u, 11); }
  static Codes mulhrs(Codes a, Codes b) { return _mm512_mulhrs_epi16(a, b); }
  static Codes shift_right(Codes v, int by) { return _mm512_sra_epi16(v, _mm_cvtsi32_si128(by)); }
  static Codes add(Codes a, Codes b) { return _mm512_add_epi16(a, b); }
  static Codes add_saturating(Codes a, Codes b) { return _mm512_adds_epi16(a, b); }
  static Codes rounding_shift(Codes h, int by) {
    const Codes odd = _mm512_and_si512(_mm512_sra_epi16(h, _mm_cvtsi32_si128(by)), _mm512_set1_epi16(1));
    const Codes half = _mm512_set1_epi16((short)((1 << (by - 1)) - 1));
    return _mm512_sra_epi16(_mm512_adds_epi16(_mm512_adds_epi16(h, half), odd), _mm_cvtsi32_si128(by));
  }
  static void store_bytes(char* y, Codes v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), _mm512_cvtsepi16_epi8(v)); }
};

}  // namespace
extern const Kernels avx512vnni = kernels_of<Vector, Shorts>("avx512vnni", Bytes::exact);
}  // namespace fewbit
