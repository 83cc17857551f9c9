// 64-bit Arm without the dot product: 16-bit products for every code.
#include "arm_vectors.h"

namespace fewbit {
namespace {

struct Vector : Vector128 {
  static constexpr int BEST = 2;
  static constexpr bool HAS_BYTES = false, HAS_NIBBLES = false;
  // Two products of |w| <= 128 by |x| <= 127 fit 16 bits.
  static Codes add_products(Codes s, int8x16_t w, int8x16_t x) {
    const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(x)), high = vmull_high_s8(w, x);
    return vpadalq_s16(s, vpaddq_s16(low, high));
  }
  static Codes small_dot(Codes s, Codes w0, Codes w1, const char* x0, const char* x1) {
    return add_products(add_products(s, bytes(w0), bytes(broadcast(x0))), bytes(w1), bytes(broadcast(x1)));
  }
  static Codes byte_dot(Codes s, Codes w, const char* x) { return add_products(s, around_128(w), bytes(broadcast(x))); }
  static Codes best_dot(Codes s, Codes x, Codes w) { return dot2(s, x, w); }
};

}  // namespace
extern const Kernels neon = kernels_of<Vector, Shorts128>("neon", Bytes::never);
}  // namespace fewbit
