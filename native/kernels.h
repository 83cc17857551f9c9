// What a program asks of an instruction set: one table of functions, filled once in each instruction set's own file.
//
// Registers are rows of elements; a row's storage is a multiple of 16 elements, so no loop here has a tail: what lies
// behind a row's last element is garbage that nobody reads. Clauses (S1-S7) are those of docs/semantics.md.
#pragma once
#include <cstddef>
#include <cstdint>

#include "grouped.h"

namespace fewbit {

constexpr int BLOCK = 16;  // outputs of a packed weight block, and the granule of a row

enum class Type : uint32_t { u8, i8, u16, i16, i32, i64, f32, f64 };
constexpr int size_of(Type t) {
  return t <= Type::i8 ? 1 : t <= Type::i16 ? 2 : t == Type::i32 || t == Type::f32 ? 4 : 8;
}

// y[o] = finish(bias[o] + sum over k of dot(x[k], w[k][o])), where x is read four bytes (one k) at a time:
// four 8-bit codes, two 16-bit codes, or one float. weight: [out / 16][k][16] of four bytes each; of nibbles, a k of weights
// serves two of x: its four low nibbles, then its four high ones.
struct Linear {
  const void* weight;
  const void* bias;        // [out padded] int32, with the zero points' share in it; float for floats
  const double* ratio;     // [out padded] m / 2^s, exact (S3); null: exit_scale instead
  const float* exit_scale; // [out padded] S7
  uint32_t flip;           // xor on four bytes of x: brings codes to the signedness that the product wants
  int blocks;              // of 16 outputs
  int k;                   // groups of four bytes in a row of x
  int zero_point;
  Type type;               // of y
  ptrdiff_t x_stride, y_stride;  // bytes between rows
};

// S6: 32 segments of degree 4, then S4 to y.
struct Table {
  const int16_t* c;       // [5][32]
  const uint8_t* planes;  // the same as [5][low byte, high byte][32], for byte shuffles
  int guard;
  double ratio;
  int shift;  // 1..8 where S4 is a plain rounding shift to int8 with zero point 0; else 0, and ratio says
  bool same;  // S4 changes nothing: int16 to int16, ratio 1
  int zero_point;
  Type type;
};

// S4 alone, and S5: y = round(a * ratio_a [+ or * b * ratio_b]) + zero_point, saturated to y's type.
struct Rescale {
  double ratio_a, ratio_b;
  int zero_a, zero_b, zero_point;
  Type type_a, type_b, type;
};

// S1: float32 -> codes.
struct Quantize {
  float scale;
  bool by_multiplication;  // scale is a power of two whose inverse is finite: the same bits, faster
  int zero_point;
  Type type;
};

enum class Binary : uint32_t { add, sub, mul, div, min, max };
enum class Unary : uint32_t { relu, neg, abs, tanh, sigmoid, exp, elu, softplus, leaky_relu };

// How an instruction set multiplies four 8-bit codes at once.
enum class Bytes { never, exact, saturating };

struct Kernels {
  const char* name;
  Bytes bytes;
  bool signed_bytes;  // x of the 8-bit product is signed (Arm), not unsigned (x86)

  void (*linear_bytes)(const Linear&, const char* x, char* y, int rows);
  void (*linear_nibbles)(const Linear&, const char* x, char* y, int rows);  // null: unpacked at load
  void (*linear_words)(const Linear&, const char* x, char* y, int rows);
  void (*linear_floats)(const Linear&, const char* x, char* y, int rows);

  // Observations of float32 or float64 become float32; is one of them NaN? Any n.
  bool (*load)(const float* x, float* y, ptrdiff_t n);
  bool (*load_doubles)(const double* x, float* y, ptrdiff_t n);

  // n is a multiple of 16 elements in all of these.
  void (*table)(const Table&, const int16_t* x, char* y, ptrdiff_t n);
  void (*quantize)(const Quantize&, const float* x, char* y, ptrdiff_t n);
  void (*rescale)(const Rescale&, const char* a, char* y, ptrdiff_t n);
  void (*add)(const Rescale&, const char* a, const char* b, char* y, ptrdiff_t n);
  void (*multiply)(const Rescale&, const char* a, const char* b, char* y, ptrdiff_t n);
  void (*dequantize)(Type, const char* x, int zero_point, const float* scale, bool per_element, float* y, ptrdiff_t n);
  void (*widen)(Type, const char* x, int16_t* y, ptrdiff_t n);
  void (*binary)(Binary, const float* a, const float* b, float* y, ptrdiff_t n);
  void (*unary)(Unary, float alpha, const float* x, float* y, ptrdiff_t n);

  // Blocks first to last - 1 of 16 outputs, for all tokens, quantized or floats. y: float32 [rows][out]
  int tile;  // tokens at once (tile_of)
  void (*grouped)(const Grouped&, const Tokens&, int first, int last, float* y);
  void (*grouped_floats)(const Grouped&, const Tokens&, int first, int last, float* y);
  void (*quantize_group)(const float* x, int n, int8_t* codes, float& scale, int32_t& sum);

  double (*peak)(long rounds);  // multiply-accumulates done by `rounds` of the 8-bit product on registers alone
};

}  // namespace fewbit
