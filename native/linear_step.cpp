// Packs a linear layer for an instruction set and chooses the product it may use.
//
// 8-bit codes by 8-bit weights take the 8-bit product where the instruction set has an exact one, or a saturating one and
// the codes prove that no pair can saturate; 4-bit weights stay packed where unpacking in registers measured faster;
// everything else takes the 16-bit product; and sums that may pass 2^31 (S2, B > 31)
// or results that may pass it before they are saturated, plain 64-bit arithmetic.
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "program.h"

namespace fewbit {
namespace {

struct Layer {  // as the program says it
  int x, y, out, in;
  std::vector<int16_t> weight;  // [out][in]
  std::vector<int64_t> bias;
  int zero_input, zero_point;
  std::vector<double> ratio;    // [out], or empty
  std::vector<float> exit_scale;
};

struct Packed {
  std::vector<char> weight;
  std::vector<int32_t> bias;
  std::vector<double> ratio;
  std::vector<float> exit_scale;
};

int padded(int n) { return (n + BLOCK - 1) / BLOCK * BLOCK; }

int64_t lowest(Type t) { return t == Type::i8 ? -128 : t == Type::i16 ? -32768 : 0; }
int64_t highest(Type t) { return t == Type::i8 ? 127 : t == Type::u8 ? 255 : t == Type::i16 ? 32767 : 65535; }

// Do sums, `times` themselves, and results stay inside 32 bits, whatever the input?
bool narrow(const Layer& l, Type x, int64_t times = 1) {
  const int64_t reach = std::max(highest(x) - l.zero_input, l.zero_input - lowest(x));
  for (int o = 0; o < l.out; o++) {
    int64_t bound = std::llabs(l.bias[(size_t)o]);
    for (int i = 0; i < l.in; i++) bound += std::abs((int64_t)l.weight[(size_t)o * l.in + i]) * reach;
    if (bound * times > INT32_MAX) return false;
    if (!l.ratio.empty() && (double)bound * l.ratio[(size_t)o] > 2147400000.0) return false;
  }
  return true;
}

bool fits(const Layer& l, int lowest, int highest) {
  return std::all_of(l.weight.begin(), l.weight.end(), [=](int16_t w) { return w >= lowest && w <= highest; });
}

// Can the sum of two neighbouring products, each with a code up to 255, leave 16 bits?
bool saturates(const Layer& l) {
  for (int o = 0; o < l.out; o++)
    for (int i = 0; i + 1 < l.in; i += 2) {
      const int a = l.weight[(size_t)o * l.in + i], b = l.weight[(size_t)o * l.in + i + 1];
      if (255 * (std::max(a, 0) + std::max(b, 0)) > 32767 || 255 * (std::min(a, 0) + std::min(b, 0)) < -32768) return true;
    }
  return false;
}

// [out / 16][k][16] groups of four bytes: GROUP codes of type T
template <class T>
std::vector<char> pack(const std::vector<T>& w, int out, int in) {
  constexpr int GROUP = 4 / sizeof(T);
  const int k = (in + GROUP - 1) / GROUP, blocks = padded(out) / BLOCK;
  std::vector<char> bytes((size_t)blocks * k * BLOCK * 4);
  for (int o = 0; o < out; o++)
    for (int i = 0; i < in; i++) {
      const size_t at = (((size_t)(o / BLOCK) * k + i / GROUP) * BLOCK + o % BLOCK) * 4 + (size_t)(i % GROUP) * sizeof(T);
      memcpy(&bytes[at], &w[(size_t)o * in + i], sizeof(T));
    }
  return bytes;
}

// [out / 16][k][16] of four bytes: the low nibbles are four codes, the high nibbles the next four
std::vector<char> pack_nibbles(const std::vector<int16_t>& w, int out, int in) {
  const int k = (in + 7) / 8;
  std::vector<char> bytes((size_t)padded(out) * k * 4);
  for (int o = 0; o < out; o++)
    for (int i = 0; i < in; i++) {
      const size_t at = (((size_t)(o / BLOCK) * k + i / 8) * BLOCK + o % BLOCK) * 4 + (size_t)(i % 4);
      bytes[at] = (char)(bytes[at] | (w[(size_t)o * in + i] & 15) << (i % 8 < 4 ? 0 : 4));
    }
  return bytes;
}

Step plain(const Layer& layer, Program& p) {
  const auto l = std::make_shared<Layer>(layer);
  const Place x = p.place(l->x), y = p.place(l->y);
  const Type type = p.reg(l->x).type, to = p.reg(l->y).type;
  const int count = p.reg(l->x).count, x_stride = p.reg(l->x).stride, y_stride = p.reg(l->y).stride;
  const auto low = (double)lowest(to), high = (double)highest(to);
  return [=](const Frame& f) {
    for (ptrdiff_t r = 0; r < f.rows * count; r++) {
      const char* from = x.at(f) + r * x_stride * size_of(type);
      char* into = y.at(f) + r * y_stride * size_of(to);
      for (int o = 0; o < l->out; o++) {
        int64_t sum = l->bias[(size_t)o];
        for (int i = 0; i < l->in; i++) {
          const int64_t code = type == Type::i16  ? reinterpret_cast<const int16_t*>(from)[i]
                               : type == Type::u16 ? reinterpret_cast<const uint16_t*>(from)[i]
                               : type == Type::i8  ? reinterpret_cast<const int8_t*>(from)[i]
                                                   : reinterpret_cast<const uint8_t*>(from)[i];
          sum += (code - l->zero_input) * l->weight[(size_t)o * l->in + i];
        }
        if (!l->exit_scale.empty()) {
          reinterpret_cast<float*>(into)[o] = (float)sum * l->exit_scale[(size_t)o];
          continue;
        }
        double v = std::nearbyint((double)sum * l->ratio[(size_t)o]) + l->zero_point;
        v = v < low ? low : v > high ? high : v;
        const auto code = (int32_t)v;
        memcpy(into + (size_t)o * size_of(to), &code, (size_t)size_of(to));  // little-endian
      }
    }
  };
}

Layer read(Arguments& a, Program& p) {
  Layer l;
  l.x = a.reg(), l.y = a.reg();
  const Register &x = p.reg(l.x), &y = p.reg(l.y);
  l.out = y.inner, l.in = x.inner;
  need(x.count == y.count && !y.constant && !x.constant && x.type <= Type::i16, "a layer's registers do not fit it");
  l.weight = a.array<int16_t>((int64_t)l.out * l.in);
  l.bias = a.array<int64_t>(l.out);
  for (int64_t b : l.bias) need(b >= -(int64_t(1) << 52) && b <= int64_t(1) << 52, "a bias is too large");
  l.zero_input = (int)a.integer(-32768, 65535);
  const bool leaves = a.integer(0, 1);
  need(leaves ? y.type == Type::f32 : y.type <= Type::i16, "a layer's registers do not fit it");
  if (leaves) {
    l.zero_point = 0;
    l.exit_scale = a.array<float>(l.out);
  } else {
    l.zero_point = (int)a.integer(-32768, 65535);
    const auto m = a.array<int64_t>(l.out), shift = a.array<int64_t>(l.out);
    for (int o = 0; o < l.out; o++) {
      need(m[(size_t)o] >= 0 && m[(size_t)o] < int64_t(1) << 53 && shift[(size_t)o] >= 1 && shift[(size_t)o] <= 62, "a multiplier");
      l.ratio.push_back(std::ldexp((double)m[(size_t)o], -(int)shift[(size_t)o]));
    }
  }
  return l;
}

}  // namespace

Step make_linear(Arguments& a, Program& p) {
  const Layer l = read(a, p);
  const Type type = p.reg(l.x).type;
  if (!narrow(l, type)) return plain(l, p);
  const Kernels& k = p.kernels;
  const bool bytes = size_of(type) == 1 && fits(l, -128, 127) && k.bytes != Bytes::never && (k.bytes == Bytes::exact || !saturates(l));
  const bool nibbles = bytes && k.linear_nibbles && fits(l, -8, 7) && narrow(l, type, 16);
  // x' = x + moved, for the signedness that the product wants
  const int moved = !bytes ? (type == Type::u16 ? -32768 : 0)
                           : k.signed_bytes ? (type == Type::u8 ? -128 : 0) : (type == Type::i8 ? 128 : 0);
  const auto packed = std::make_shared<Packed>();
  const size_t width = (size_t)padded(l.out);
  packed->weight = nibbles ? pack_nibbles(l.weight, l.out, l.in)
                   : bytes ? pack(std::vector<int8_t>(l.weight.begin(), l.weight.end()), l.out, l.in) : pack(l.weight, l.out, l.in);
  packed->bias.resize(width);
  for (int o = 0; o < l.out; o++) {
    int64_t sum = 0;
    for (int i = 0; i < l.in; i++) sum += l.weight[(size_t)o * l.in + i];
    const auto bias = (uint64_t)(l.bias[(size_t)o] - (l.zero_input + moved) * sum);
    packed->bias[(size_t)o] = (int32_t)(uint32_t)(nibbles ? bias << 4 : bias);  // modulo 2^32 (S2)
  }
  packed->ratio = l.ratio, packed->exit_scale = l.exit_scale;
  if (!l.ratio.empty()) packed->ratio.resize(width);
  if (!l.exit_scale.empty()) packed->exit_scale.resize(width);

  int x = l.x;
  const bool widens = !bytes && size_of(type) == 1;
  if (widens) x = p.scratch(Type::i16, l.x);
  Linear args{};
  args.weight = packed->weight.data(), args.bias = packed->bias.data();
  args.ratio = packed->ratio.empty() ? nullptr : packed->ratio.data();
  args.exit_scale = packed->exit_scale.empty() ? nullptr : packed->exit_scale.data();
  args.flip = !moved ? 0 : bytes ? 0x80808080u : 0x80008000u;
  args.blocks = padded(l.out) / BLOCK, args.k = nibbles ? (l.in + 7) / 8 : bytes ? (l.in + 3) / 4 : (l.in + 1) / 2;
  args.zero_point = l.zero_point, args.type = p.reg(l.y).type;
  args.x_stride = (ptrdiff_t)p.reg(x).stride * size_of(p.reg(x).type);
  args.y_stride = (ptrdiff_t)p.reg(l.y).stride * size_of(args.type);
  const auto run = nibbles ? k.linear_nibbles : bytes ? k.linear_bytes : k.linear_words;
  const auto widen = k.widen;
  const Place from = p.place(l.x), wide = p.place(x), to = p.place(l.y);
  const ptrdiff_t count = p.reg(l.x).count, elements = p.reg(l.x).elements();
  if (!widens) return [=](const Frame& f) { (void)packed; run(args, from.at(f), to.at(f), (int)(f.rows * count)); };
  return [=](const Frame& f) {
    (void)packed;
    widen(type, from.at(f), reinterpret_cast<int16_t*>(wide.at(f)), f.rows * elements);
    run(args, wide.at(f), to.at(f), (int)(f.rows * count));
  };
}

Step make_linear_floats(Arguments& a, Program& p) {
  const int x = a.reg(), y = a.reg();
  const Register &rx = p.reg(x), &ry = p.reg(y);
  need(rx.count == ry.count && rx.type == Type::f32 && ry.type == Type::f32 && !rx.constant, "a float layer");
  const auto packed = std::make_shared<std::pair<std::vector<char>, std::vector<float>>>();
  packed->first = pack(a.array<float>((int64_t)ry.inner * rx.inner), ry.inner, rx.inner);
  packed->second = a.array<float>(ry.inner);
  packed->second.resize((size_t)ry.stride);
  Linear args{};
  args.weight = packed->first.data(), args.bias = packed->second.data();
  args.blocks = ry.stride / BLOCK, args.k = rx.inner;
  args.x_stride = (ptrdiff_t)rx.stride * 4, args.y_stride = (ptrdiff_t)ry.stride * 4;
  const auto run = p.kernels.linear_floats;
  const Place from = p.place(x), to = p.place(y);
  const ptrdiff_t count = rx.count;
  return [=](const Frame& f) { (void)packed; run(args, from.at(f), to.at(f), (int)(f.rows * count)); };
}

}  // namespace fewbit
