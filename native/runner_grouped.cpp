// Grouped weights without Python: every instruction set of this CPU against a plain loop, over random shapes and codes.
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>

#include "dispatch.h"
#include "grouped_weight.h"

namespace {

using fewbit::GroupedShape;

struct Case {
  GroupedShape shape;
  std::vector<uint8_t> codes, zero;  // unpacked
  std::vector<uint16_t> scale;
  std::vector<float> bias, x;
  int rows;
};

Case draw(std::mt19937& random) {
  const auto one_of = [&](std::initializer_list<int> v) { return v.begin()[random() % v.size()]; };
  Case c;
  const int bits = one_of({8, 4, 3, 2}), size = one_of({8, 16, 32, 64, 128}), groups = one_of({1, 2, 5});
  c.shape = {one_of({1, 15, 16, 17, 64}), size * groups, bits, size, random() % 2 == 0, random() % 2 == 0};
  c.rows = one_of({1, 2, 3, 9, 131});
  const bool extreme = random() % 3 == 0;
  const int top = (1 << bits) - 1;
  const auto code = [&] { return (uint8_t)(extreme ? (random() % 2 ? top : 0) : random() % (uint32_t)(top + 1)); };
  const size_t scales = (size_t)c.shape.out * (size_t)groups;
  for (size_t i = 0; i < (size_t)c.shape.out * (size_t)c.shape.in; i++) c.codes.push_back(code());
  for (size_t i = 0; i < scales; i++) c.scale.push_back((uint16_t)(random() % 0x7C00 | random() % 2 << 15)), c.zero.push_back(code());
  for (int i = 0; i < c.shape.out; i++) c.bias.push_back((float)(int)(random() % 2001) - 1000.0f);
  for (int i = 0; i < c.rows * c.shape.in; i++) c.x.push_back(extreme ? (random() % 2 ? 1.0f : -1.0f) : std::ldexp((float)(int)random(), (int)(random() % 8) - 36));
  if (random() % 4 == 0) c.x[random() % c.x.size()] = std::bit_cast<float>(random() % 2 ? 0x7F800000u : 0x7FC12345u);
  return c;
}

std::vector<uint8_t> packed(const Case& c) {
  const ptrdiff_t row = ((ptrdiff_t)c.shape.in * c.shape.bits + 7) / 8;
  std::vector<uint8_t> bytes((size_t)(row * c.shape.out));
  for (ptrdiff_t o = 0; o < c.shape.out; o++)
    for (ptrdiff_t k = 0; k < c.shape.in; k++)
      for (int b = 0; b < c.shape.bits; b++) {
        const ptrdiff_t at = k * c.shape.bits + b;
        bytes[(size_t)(o * row + at / 8)] |= (uint8_t)((c.codes[(size_t)(o * c.shape.in + k)] >> b & 1) << at % 8);
      }
  return bytes;
}

// The definition in grouped.h, plainly.
std::vector<float> wanted(const Case& c) {
  const int size = c.shape.group_size, groups = c.shape.groups();
  std::vector<float> y;
  for (int t = 0; t < c.rows; t++)
    for (int o = 0; o < c.shape.out; o++) {
      volatile float total = 0;  // volatile: no fusing here, whatever the flags
      for (int g = 0; g < groups; g++) {
        const float* x = &c.x[(size_t)(t * c.shape.in + g * size)];
        const size_t at = (size_t)(o * groups + g);
        float largest = 0;
        bool finite = true;
        for (int k = 0; k < size; k++) largest = std::fmax(largest, std::fabs(x[k])), finite &= std::isfinite(x[k]);
        const bool live = finite && largest >= 0x1p-80f;
        const float scale = !finite ? NAN : live ? largest / 127 : 0, inverse = live ? 127 / largest : 0;
        int64_t sum = 0;
        for (int k = 0; k < size && live; k++) {
          volatile float step = x[k] * inverse;
          const int zero = c.shape.zero ? c.zero[at] : 1 << (c.shape.bits - 1);
          sum += (int64_t)std::nearbyint(step) * (c.codes[(size_t)(o * c.shape.in + g * size + k)] - zero);
        }
        volatile float step = fewbit::half(c.scale[at]) * scale;
        volatile float product = (float)sum * step;
        total = total + product;
      }
      if (c.shape.bias) total = total + c.bias[(size_t)o];
      y.push_back((float)total);
    }
  return y;
}

}  // namespace

int check_grouped(unsigned seed, int cases) {
  std::mt19937 random(seed);
  int bad = 0;
  for (int i = 0; i < cases; i++) {
    const Case c = draw(random);
    const auto bytes = packed(c);
    const auto right = wanted(c);
    for (const fewbit::Kernels* k : fewbit::available()) {
      const size_t size = c.shape.places().end;
      std::unique_ptr<uint8_t, void (*)(void*)> panels(static_cast<uint8_t*>(std::aligned_alloc(64, size)), std::free);
      fewbit::GroupedWeight weight(c.shape, panels.get(), *k);
      weight.fill(bytes.data(), c.scale.data(), c.zero.data(), c.bias.data());
      std::vector<float> y(right.size()), floats(right.size());
      weight.run(c.x.data(), y.data(), c.rows, false, 1 + i % 3);
      weight.run(c.x.data(), floats.data(), c.rows, true, 1 + i % 3);
      bool same = true;
      for (size_t j = 0; j < y.size(); j++) same &= y[j] == right[j] || (y[j] != y[j] && right[j] != right[j]);
      if (!same) printf("%s: case %d differs: [%d, %d] int%d groups of %d\n", k->name, i, c.shape.out, c.shape.in, c.shape.bits, c.shape.group_size);
      bad += !same;
    }
  }
  printf("grouped: %d cases, %d differ:", cases, bad);
  for (const fewbit::Kernels* k : fewbit::available()) printf(" %s", k->name);
  printf("\n");
  return bad ? 1 : 0;
}
