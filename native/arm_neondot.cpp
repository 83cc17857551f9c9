// 64-bit Arm with the dot product of four signed bytes (Armv8.2 and later).
#include "arm_vectors.h"

namespace fewbit {
namespace {

struct Vector : Vector128 {
  static constexpr int BEST = 4;
  static constexpr bool HAS_BYTES = true, HAS_NIBBLES = false;
  static Codes dot4(Codes s, Codes x, Codes w) { return vdotq_s32(s, vreinterpretq_s8_s32(x), vreinterpretq_s8_s32(w)); }
  static Codes small_dot(Codes s, Codes w0, Codes w1, const char* x0, const char* x1) {
    return dot4(dot4(s, broadcast(x0), w0), broadcast(x1), w1);
  }
  static Codes byte_dot(Codes s, Codes w, const char* x) { return vdotq_s32(s, around_128(w), bytes(broadcast(x))); }
  static Codes best_dot(Codes s, Codes x, Codes w) { return dot4(s, x, w); }
};

}  // namespace
extern const Kernels neondot = kernels_of<Vector, Shorts128>("neondot", Bytes::exact, true);
}  // namespace fewbit
