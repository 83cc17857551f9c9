// AVX-VNNI: AVX2 with the dot product of four bytes (unsigned by signed), exact in 32 bits.
#include "x86_vectors.h"

namespace fewbit {
namespace {

struct Vector : Vector256 {
  static constexpr bool HAS_NIBBLES = false;  // measured: no gain at batch 1, a loss in batches
  static constexpr int ROWS = 3, BEST = 4;
  static Codes dot4(Codes s, Codes x, Codes w) { return _mm256_dpbusd_avx_epi32(s, x, w); }
  static Codes dot2(Codes s, Codes x, Codes w) { return _mm256_dpwssd_avx_epi32(s, x, w); }
  static constexpr int BYTE_ZERO = 0;
  static Codes small_dot(Codes s, Codes w0, Codes w1, const char* x0, const char* x1) {
    return dot4(dot4(s, w0, broadcast(x0)), w1, broadcast(x1));
  }
  static Codes byte_dot(Codes s, Codes w, const char* x) { return dot4(s, w, broadcast(x)); }
  static Codes best_dot(Codes s, Codes x, Codes w) { return dot4(s, x, w); }
};

}  // namespace
extern const Kernels avxvnni = kernels_of<Vector, Shorts256>("avxvnni", Bytes::exact);
}  // namespace fewbit
