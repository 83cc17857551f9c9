// AVX-VNNI: AVX2 with the dot product of four bytes (unsigned by signed), exact in 32 bits.
#include "x86_vectors.h"

namespace fewbit {
namespace {

struct Vector : Vector256 {
  static constexpr bool HAS_NIBBLES = false;  // measured: no gain at batch 1, a loss in batches
  static constexpr int ROWS = 3, BEST = 4;
  static Codes dot4(Codes s, Codes x, Codes w) { return _mm256_dpbusd_avx_epi32(s, x, w); }
  static Codes dot2(Codes s, Codes x, Codes w) { return _mm256_dpwssd_avx_epi32(s, x, w); }
  static Codes best_dot(Codes s, Codes x, Codes w) { return dot4(s, x, w); }
};

}  // namespace
extern const Kernels avxvnni = kernels_of<Vector, Shorts256>("avxvnni", Bytes::exact);
}  // namespace fewbit
