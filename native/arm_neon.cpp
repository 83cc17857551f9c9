// 64-bit Arm without the dot product: 16-bit products for every code.
#include "arm_vectors.h"

namespace fewbit {
namespace {

struct Vector : Vector128 {
  static constexpr int BEST = 2;
  static constexpr bool HAS_BYTES = false, HAS_NIBBLES = false;
  static Codes best_dot(Codes s, Codes x, Codes w) { return dot2(s, x, w); }
};

}  // namespace
extern const Kernels neon = kernels_of<Vector, Shorts128>("neon", Bytes::never);
}  // namespace fewbit
