// Any CPU: C++ that says what every other file must compute.
#include <cmath>
#include <cstring>

#include "kernels_of.h"

namespace fewbit {
namespace {

struct Vector {
  static constexpr int LANES = 16, ROWS = 4, COLS = 1, BEST = 4, TOGETHER = 0, TILE = 1, BYTE_ZERO = 0;
  static constexpr bool HAS_BYTES = true, HAS_NIBBLES = false, WIDE = false;
  struct Codes { int32_t v[16]; };
  struct Floats { float v[16]; };

  template <class F>
  static Codes each(F f) {
    Codes c;
    for (int i = 0; i < 16; i++) c.v[i] = f(i);
    return c;
  }
  static Codes splat(uint32_t v) { return each([&](int) { return (int32_t)v; }); }
  static Codes load(const void* p) {
    Codes c;
    memcpy(&c, p, sizeof c);
    return c;
  }
  static Codes broadcast(const void* p) {
    uint32_t v;
    memcpy(&v, p, 4);
    return splat(v);
  }
  static Codes flip(const Codes& x, const Codes& f) { return each([&](int i) { return x.v[i] ^ f.v[i]; }); }
  static Codes add(const Codes& a, const Codes& b) {
    return each([&](int i) { return (int32_t)((uint32_t)a.v[i] + (uint32_t)b.v[i]); });
  }
  static Codes dot4(const Codes& s, const Codes& x, const Codes& w) {
    uint8_t a[64];
    int8_t b[64];
    memcpy(a, &x, 64), memcpy(b, &w, 64);
    return each([&](int i) {
      int32_t sum = 0;
      for (int k = 0; k < 4; k++) sum += a[4 * i + k] * b[4 * i + k];
      return (int32_t)((uint32_t)s.v[i] + (uint32_t)sum);
    });
  }
  static Codes dot2(const Codes& s, const Codes& x, const Codes& w) {
    int16_t a[32], b[32];
    memcpy(a, &x, 64), memcpy(b, &w, 64);
    return each([&](int i) {
      const uint32_t p = (uint32_t)(a[2 * i] * b[2 * i]), q = (uint32_t)(a[2 * i + 1] * b[2 * i + 1]);
      return (int32_t)((uint32_t)s.v[i] + p + q);
    });
  }
  template <int SHIFT, int MASK>
  static Codes field(const Codes& w) { return each([&](int i) { return (int32_t)((uint32_t)w.v[i] >> SHIFT & MASK * 0x01010101u); }); }
  template <int N>
  static Codes shift_left(const Codes& w) { return each([&](int i) { return (int32_t)((uint32_t)w.v[i] << N); }); }
  template <int J>
  static Codes lowest_byte(const Codes& w) { return each([&](int i) { return w.v[i] >> 8 * J & 255; }); }
  static Codes either(const Codes& a, const Codes& b) { return each([&](int i) { return a.v[i] | b.v[i]; }); }
  static Codes load_bytes(const uint8_t* p) { return each([&](int i) { return (int32_t)p[i]; }); }
  static Codes subtract(const Codes& a, const Codes& b) { return each([&](int i) { return a.v[i] - b.v[i]; }); }
  static Codes multiply(const Codes& a, const Codes& b) { return each([&](int i) { return a.v[i] * b.v[i]; }); }
  static Codes byte_dot(const Codes& s, const Codes& w, const char* x) { return dot4(s, w, broadcast(x)); }
  static Codes small_dot(const Codes& s, const Codes& w0, const Codes& w1, const char* x0, const char* x1) {
    return byte_dot(byte_dot(s, w0, x0), w1, x1);
  }
  static Codes best_dot(const Codes& s, const Codes& x, const Codes& w) { return dot4(s, x, w); }
  template <class T>
  static void own(T&) {}
  static void keep(Codes& x, Codes& w) { asm volatile("" : "+m"(x), "+m"(w)); }

  static Codes requantize(const Codes& s, const double* ratio, int zero) {
    return each([&](int i) { return (int32_t)((s.v[i] * ratio[i] + MAGIC) - MAGIC) + zero; });
  }
  static void store(const Codes& c, Type type, char* y) {
    typed(type, [&](auto kind) {
      using T = decltype(kind);
      T out[16];
      for (int i = 0; i < 16; i++) {
        const int32_t v = c.v[i] < (int32_t)LOWEST<T> ? (int32_t)LOWEST<T> : c.v[i];
        out[i] = (T)(v > (int32_t)HIGHEST<T> ? (int32_t)HIGHEST<T> : v);
      }
      memcpy(y, out, sizeof out);
    });
  }
  static void leave(const Codes& s, const float* scale, float* y) {
    for (int i = 0; i < 16; i++) y[i] = (float)s.v[i] * scale[i];
  }

  static Floats as_floats(const Codes& c) {
    Floats f;
    memcpy(&f, &c, sizeof f);
    return f;
  }
  static Floats load_floats(const float* p) {
    Floats f;
    memcpy(&f, p, sizeof f);
    return f;
  }
  static Floats add_floats(Floats a, const Floats& b) {
    for (int i = 0; i < 16; i++) a.v[i] += b.v[i];
    return a;
  }
  static Floats multiply_add(Floats s, const Floats& x, const Floats& w) {
    for (int i = 0; i < 16; i++) s.v[i] += x.v[i] * w.v[i];
    return s;
  }
  template <class F>
  static Floats floats(F f) {
    Floats v;
    for (int i = 0; i < 16; i++) v.v[i] = f(i);
    return v;
  }
  static Floats load_half(const uint16_t* p) { return floats([&](int i) { return half(p[i]); }); }
  static Floats to_floats(const Codes& c) { return floats([&](int i) { return (float)c.v[i]; }); }
  static Floats splat_float(float v) { return floats([&](int) { return v; }); }
  static Floats multiply_floats(const Floats& a, const Floats& b) { return floats([&](int i) { return a.v[i] * b.v[i]; }); }
  static void store_floats(const Floats& f, float* y) { memcpy(y, &f, sizeof f); }
};

struct Shorts {
  static constexpr int SHORTS = 1;
  using Codes = int;
  struct Segments {
    const int16_t* c;
    explicit Segments(const Table& t) : c(t.c) {}
    template <int POWER>
    int lookup(int i) const { return c[POWER * SEGMENTS + i]; }
  };
  static int load(const int16_t* p) { return *p; }
  static void store(int16_t* p, int h) { *p = (int16_t)h; }
  static int offset(int x) { return x + 32768; }
  static int place(int u) { return ((u << 5) & 65535) - 32768; }
  static int segment(int u) { return u >> 11; }
  static int mulhrs(int a, int b) { return (a * b + 16384) >> 15; }
  static int shift_right(int v, int by) { return v >> by; }
  static int add(int a, int b) { return a + b; }
  static int add_saturating(int a, int b) { return a + b > 32767 ? 32767 : a + b < -32768 ? -32768 : a + b; }
  static int rounding_shift(int h, int by) { return (h + (1 << (by - 1)) - 1 + ((h >> by) & 1)) >> by; }
  static void store_bytes(char* y, int v) { *y = (char)(v > 127 ? 127 : v < -128 ? -128 : v); }
};

}  // namespace
extern const Kernels portable = kernels_of<Vector, Shorts>("portable", Bytes::exact);
}  // namespace fewbit
