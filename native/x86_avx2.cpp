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
  static Codes best_dot(Codes s, Codes x, Codes w) {
    own(x);  // or the compiler multiplies once for all sums
    return dot2(s, x, w);
  }
};

}  // namespace
extern const Kernels avx2 = kernels_of<Vector, Shorts256>("avx2", Bytes::saturating);
}  // namespace fewbit
