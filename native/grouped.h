// Weights of 8, 4, 3 or 2 bits in groups of columns that share a scale and a zero point: y = W x, for language models.
//
//   y[o] = sum over groups g, in order, of float(sum over k in g of (u[o, k] - zero[o, g]) * q[k]) * (scale[o, g] * s[g]),
//   then + bias[o]; q and s are the activations' codes and scale of that group. Integers are exact in 32 bits; the float32
//   multiplications and additions stand as written, none fused: every instruction set gives the same bits.
#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>

namespace fewbit {

// Rows lie 16 together, one to a 32-bit lane, whose four bytes are neighbouring columns. A chunk is what one group of
// loads brings: 4 columns of 8 bits, 8 of 4, 16 of 2 (64 bytes: four columns more in each higher field of the bytes), or 32 of
// 3 bits (192 bytes: twice 64 of the two low bits, then 64 of the high bits).
struct Grouped {
  const uint8_t* codes;   // [out / 16][in / columns of a chunk][bytes of a chunk]
  const uint16_t* scale;  // float16 [out / 16][groups][16]
  const uint8_t* zero;    // [out / 16][groups][16]; null: middle everywhere
  const float* bias;      // [out padded]; null: none
  int bits, group_size, groups, out, middle;
  ptrdiff_t block_bytes;  // of codes, of 16 rows
  ptrdiff_t in() const { return (ptrdiff_t)group_size * groups; }
  int blocks() const { return (out + 15) / 16; }
};

// Activations of `rows` tokens. Tokens lie in tiles of T (a power of two, tile_of), in which the four bytes, or one float, of
// one token follow those of the next.
struct Tokens {
  const int8_t* codes;   // of each tile: [in / 4][T][4]
  const float* scale;    // of each tile: [groups][T]
  const int32_t* sum;    // the same: the codes' sum
  const float* floats;   // of each tile: [in][T]; instead of the three
  int rows;
};

constexpr int chunk_columns(int bits) { return bits == 8 ? 4 : bits == 4 ? 8 : bits == 2 ? 16 : 32; }
constexpr int chunk_bytes(int bits) { return bits == 3 ? 192 : 64; }

// Tokens of the next tile where `left` are left.
constexpr int tile_of(int left, int most) {
  int t = most;
  while (t > left) t /= 2;
  return t;
}

// A finite float16: its bits, moved to float32's places, are the value over 2^112, subnormals too.
inline float half(uint16_t h) {
  return std::bit_cast<float>((uint32_t)(h & 0x7FFF) << 13) * (h & 0x8000 ? -0x1p112f : 0x1p112f);
}

}  // namespace fewbit
