// Packing into panels, activations into tiles, rows of blocks to threads.
#include "grouped_weight.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "pool.h"

namespace fewbit {
namespace {

constexpr int MOST_ROWS = 128;        // tokens of one pass over the weight: their codes stay in the second cache
constexpr ptrdiff_t TASK = 16 << 10;  // bytes of codes, times tokens, that are worth a task of their own
constexpr ptrdiff_t ALONE = 4 << 20;  // and that are not worth a second thread: at 2 MB one was faster, at 4 as fast

size_t aligned(size_t n) { return (n + 63) & ~size_t(63); }

struct Scratch {
  std::vector<int8_t> codes, group;
  std::vector<float> scale, floats;
  std::vector<int32_t> sum;
};

Tokens quantized(const Grouped& w, const Kernels& k, const float* x, int rows, Scratch& s) {
  const ptrdiff_t in = w.in(), size = w.group_size;
  s.codes.resize((size_t)(rows * in));
  s.scale.resize((size_t)(rows * w.groups));
  s.sum.resize(s.scale.size());
  s.group.resize((size_t)size);
  for (int first = 0, tile; first < rows; first += tile) {
    tile = tile_of(rows - first, k.tile);
    int8_t* codes = s.codes.data() + first * in;
    float* scale = s.scale.data() + first * w.groups;
    int32_t* sum = s.sum.data() + first * w.groups;
    for (int t = 0; t < tile; t++)
      for (ptrdiff_t g = 0; g < w.groups; g++) {
        const float* from = x + (first + t) * in + g * size;
        int8_t* to = tile == 1 ? codes + g * size : s.group.data();
        k.quantize_group(from, (int)size, to, scale[g * tile + t], sum[g * tile + t]);
        for (ptrdiff_t c = 0; tile > 1 && c < size; c += 4) memcpy(codes + (g * size + c) * tile + t * 4, to + c, 4);
      }
  }
  return {s.codes.data(), s.scale.data(), s.sum.data(), nullptr, rows};
}

Tokens as_floats(const Grouped& w, const Kernels& k, const float* x, int rows, Scratch& s) {
  if (rows == 1) return {nullptr, nullptr, nullptr, x, 1};
  const ptrdiff_t in = w.in();
  s.floats.resize((size_t)(rows * in));
  for (int first = 0, tile; first < rows; first += tile) {
    tile = tile_of(rows - first, k.tile);
    for (int t = 0; t < tile; t++)
      for (ptrdiff_t c = 0; c < in; c++) s.floats[(size_t)(first * in + c * tile + t)] = x[(first + t) * in + c];
  }
  return {nullptr, nullptr, nullptr, s.floats.data(), rows};
}

// Where column k's code of a block's row r lies: its byte, and its shift there; of 3 bits the two low ones.
struct Spot { ptrdiff_t byte; int shift; };

Spot spot(int bits, int r, ptrdiff_t k) {
  const int columns = chunk_columns(bits), field = (int)(k % columns) / 4;
  const ptrdiff_t chunk = k / columns * chunk_bytes(bits), place = r * 4 + k % 4;
  if (bits == 3) return {chunk + 64 * (field / 4) + place, 2 * (field % 4)};
  return {chunk + place, bits == 8 ? 0 : bits * field};
}

Spot high_spot(int r, ptrdiff_t k) { return {k / 32 * 192 + 128 + r * 4 + k % 4, (int)(k % 32) / 4}; }

}  // namespace

int GroupedShape::held() const { return group_size % chunk_columns(bits) == 0 ? bits : 4; }

void GroupedShape::check() const {
  const bool bits_known = bits == 8 || bits == 4 || bits == 3 || bits == 2;
  if (!bits_known || out < 1 || in < 1 || group_size < 1 || in % group_size || group_size % chunk_columns(bits == 8 ? 8 : 4))
    throw std::runtime_error("a weight [" + std::to_string(out) + ", " + std::to_string(in) + "] of " + std::to_string(bits) +
                             " bits in groups of " + std::to_string(group_size) + " cannot be run; groups must divide its columns, and be multiples of 8 (of 4 at 8 bits)");
}

GroupedShape::Places GroupedShape::places() const {
  const size_t rows = (size_t)blocks() * 16, scales = rows * (size_t)groups();
  Places p{};
  p.scale = aligned(rows * (size_t)in * (size_t)held() / 8);
  p.zero = p.scale + aligned(scales * 2);
  p.bias = p.zero + (zero ? aligned(scales) : 0);
  p.end = p.bias + (bias ? aligned(rows * 4) : 0);
  return p;
}

GroupedWeight::GroupedWeight(const GroupedShape& s, uint8_t* panels, const Kernels& k) : shape(s), kernels(k) {
  const auto at = s.places();
  w_ = {panels, reinterpret_cast<uint16_t*>(panels + at.scale), s.zero ? panels + at.zero : nullptr,
        s.bias ? reinterpret_cast<float*>(panels + at.bias) : nullptr, s.held(), s.group_size, s.groups(), s.out,
        1 << (s.bits - 1), (ptrdiff_t)s.in * 16 * s.held() / 8};
}

void GroupedWeight::fill(const uint8_t* codes, const uint16_t* scale, const uint8_t* zero, const float* bias) {
  const auto at = shape.places();
  auto* panels = const_cast<uint8_t*>(w_.codes);
  memset(panels, 0, at.end);
  const ptrdiff_t row_bytes = ((ptrdiff_t)shape.in * shape.bits + 7) / 8;
  for (int o = 0; o < shape.out; o++) {
    const uint8_t* row = codes + o * row_bytes;
    uint8_t* block = panels + o / 16 * w_.block_bytes;
    for (ptrdiff_t k = 0; k < shape.in; k++) {
      const ptrdiff_t bit = k * shape.bits, byte = bit / 8;
      const int pair = row[byte] | (byte + 1 < row_bytes ? row[byte + 1] << 8 : 0);
      const int code = pair >> bit % 8 & ((1 << shape.bits) - 1);
      const Spot low = spot(w_.bits, o % 16, k);
      block[low.byte] |= (uint8_t)((w_.bits == 3 ? code & 3 : code) << low.shift);
      if (w_.bits != 3) continue;
      const Spot high = high_spot(o % 16, k);
      block[high.byte] |= (uint8_t)(code >> 2 << high.shift);
    }
    for (int g = 0; g < w_.groups; g++) {
      const ptrdiff_t place = ((ptrdiff_t)(o / 16) * w_.groups + g) * 16 + o % 16, from = (ptrdiff_t)o * w_.groups + g;
      reinterpret_cast<uint16_t*>(panels + at.scale)[place] = scale[from];
      if (shape.zero) panels[at.zero + (size_t)place] = zero[from];
    }
  }
  if (shape.bias) memcpy(panels + at.bias, bias, (size_t)shape.out * 4);
}

void GroupedWeight::run(const float* x, float* y, ptrdiff_t rows, bool floats, int threads) const {
  thread_local Scratch scratch;
  const ptrdiff_t in = w_.in();
  for (ptrdiff_t first = 0; first < rows; first += MOST_ROWS) {
    const int some = (int)std::min<ptrdiff_t>(MOST_ROWS, rows - first);
    const Tokens tokens = (floats ? as_floats : quantized)(w_, kernels, x + first * in, some, scratch);
    float* to = y + first * shape.out;
    const auto kernel = floats ? kernels.grouped_floats : kernels.grouped;
    const ptrdiff_t block = w_.block_bytes * some;
    const int step = (int)std::max<ptrdiff_t>(1, TASK / block), tasks = (w_.blocks() + step - 1) / step;
    const auto work = [&](int k) { kernel(w_, tokens, k * step, std::min((k + 1) * step, w_.blocks()), to); };
    if (threads > 1 && block * w_.blocks() > ALONE) in_parallel(threads, tasks, work);
    else kernel(w_, tokens, 0, w_.blocks(), to);
  }
}

void GroupedWeight::rows(const int64_t* which, ptrdiff_t n, float* y) const {
  for (ptrdiff_t i = 0; i < n; i++) {
    const ptrdiff_t o = which[i], r = o % 16;
    const uint8_t* block = w_.codes + o / 16 * w_.block_bytes;
    for (ptrdiff_t k = 0; k < shape.in; k++) {
      const ptrdiff_t place = (o / 16 * w_.groups + k / w_.group_size) * 16 + r;
      const Spot low = spot(w_.bits, (int)r, k);
      int code = block[low.byte] >> low.shift & (w_.bits == 3 ? 3 : (1 << w_.bits) - 1);
      if (w_.bits == 3) {
        const Spot high = high_spot((int)r, k);
        code |= (block[high.byte] >> high.shift & 1) << 2;
      }
      const int zero = w_.zero ? w_.zero[place] : w_.middle;
      *y++ = (float)(code - zero) * half(w_.scale[place]);
    }
  }
}

}  // namespace fewbit
