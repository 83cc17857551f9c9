// AVX2 with FMA. Its 8-bit product adds pairs in 16 bits with saturation: used only where the codes prove that none can.
#include "x86_vectors.h"

namespace fewbit {
namespace {

struct Vector : Vector256 {
  static constexpr bool HAS_NIBBLES = false;
  static constexpr int ROWS = 2, BEST = 2;  // what any 8-bit weights may use: 16-bit products
  static Codes dot4(Codes s, Codes x, Codes w) {
    return _mm256_add_epi32(s, _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), _mm256_set1_epi16(1)));
  }
  // Codes to 15: four products of a lane fit 16 bits.
  static Codes small_dot(Codes s, Codes w0, Codes w1, const char* x0, const char* x1) {
    const Codes pairs = _mm256_add_epi16(_mm256_maddubs_epi16(w0, broadcast(x0)), _mm256_maddubs_epi16(w1, broadcast(x1)));
    return _mm256_add_epi32(s, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  // |w - 128| <= 128 by x within +-127, with w's sign: two products fit 16 bits.
  static constexpr int BYTE_ZERO = 128;
  static Codes byte_dot(Codes s, Codes w, const char* x) {
    w = _mm256_xor_si256(w, _mm256_set1_epi8((char)0x80));
    return dot4(s, _mm256_abs_epi8(w), _mm256_sign_epi8(broadcast(x), w));
  }
  static Codes best_dot(Codes s, Codes x, Codes w) {
    own(x);  // or the compiler multiplies once for all sums
    return dot2(s, x, w);
  }
};

}  // namespace
extern const Kernels avx2 = kernels_of<Vector, Shorts256>("avx2", Bytes::saturating);
}  // namespace fewbit
