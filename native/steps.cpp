// The steps of a program, one maker each: read its arguments, check them against the registers, return what runs.
#include <cmath>
#include <cstring>

#include "program.h"

namespace fewbit {
namespace {

bool codes(const Register& r) { return r.type <= Type::i16; }
bool alike(const Register& a, const Register& b) { return a.count == b.count && a.inner == b.inner; }
double ratio(int64_t m, int64_t shift) { return std::ldexp((double)m, -(int)shift); }
int64_t shift_of(Arguments& a) { return a.integer(1, 62); }
int64_t zero_of(Arguments& a) { return a.integer(-32768, 65535); }

// y[dst .. dst + length) = x[src ..), src -1: the fill
Step make_copy(Arguments& a, Program& p) {
  const int x = a.reg(), y = a.reg();
  const Register &rx = p.reg(x), &ry = p.reg(y);
  const int64_t fill = a.integer(-32768, 65535);
  const auto runs = std::make_shared<std::vector<int32_t>>(a.array<int32_t>());
  need(rx.type == ry.type && runs->size() % 3 == 0, "a copy");
  for (size_t i = 0; i < runs->size(); i += 3) {
    const int64_t dst = (*runs)[i], src = (*runs)[i + 1], length = (*runs)[i + 2];
    need(dst >= 0 && length >= 0 && src >= -1 && dst + length <= ry.elements(), "a copy leaves its register");
    need(src < 0 || src + length <= rx.elements(), "a copy leaves its register");
    need(src >= 0 || ry.type <= Type::i16, "a copy fills what holds no codes");
  }
  const int size = size_of(ry.type);
  const Place from = p.place(x), to = p.place(y);
  const ptrdiff_t x_row = rx.constant ? 0 : rx.row_bytes(), y_row = ry.row_bytes();
  return [=](const Frame& f) {
    for (ptrdiff_t r = 0; r < f.rows; r++) {
      const char* in = from.at(f) + r * x_row;
      char* out = to.at(f) + r * y_row;
      for (size_t i = 0; i < runs->size(); i += 3) {
        const ptrdiff_t dst = (*runs)[i], src = (*runs)[i + 1], length = (*runs)[i + 2];
        if (src >= 0) memcpy(out + dst * size, in + src * size, (size_t)(length * size));
        else for (ptrdiff_t j = 0; j < length; j++) memcpy(out + (dst + j) * size, &fill, (size_t)size);  // little-endian
      }
    }
  };
}

Step make_quantize(Arguments& a, Program& p) {
  const int x = a.reg(), y = a.reg();
  need(p.reg(x).type == Type::f32 && !p.reg(x).constant && codes(p.reg(y)) && alike(p.reg(x), p.reg(y)), "a quantization");
  Quantize q{};
  q.scale = a.scalar<float>();
  need(q.scale > 0 && std::isfinite(q.scale), "a scale");
  int exponent;
  q.by_multiplication = std::frexp(q.scale, &exponent) == 0.5f && exponent > -120 && exponent < 120;
  q.zero_point = (int)zero_of(a), q.type = p.reg(y).type;
  const auto run = p.kernels.quantize;
  const Place from = p.place(x), to = p.place(y);
  const ptrdiff_t n = p.reg(x).elements();
  return [=](const Frame& f) { run(q, reinterpret_cast<const float*>(from.at(f)), to.at(f), f.rows * n); };
}

Step make_table(Arguments& a, Program& p) {
  const int x = a.reg(), y = a.reg();
  need(p.reg(x).type == Type::i16 && !p.reg(x).constant && codes(p.reg(y)) && alike(p.reg(x), p.reg(y)), "a table");
  const int segments = (int)a.integer(2, 65536 / 2), degree = (int)a.integer(1, 4);
  need((segments & (segments - 1)) == 0, "a table's segments are no power of two");
  const auto c = std::make_shared<std::vector<int16_t>>(a.array<int16_t>((int64_t)segments * (degree + 1)));
  Table t{};
  t.c = c->data(), t.guard = (int)a.integer(0, 15);
  const int64_t m = a.integer(0, int64_t(1) << 22), shift = shift_of(a);
  t.ratio = ratio(m, shift), t.zero_point = (int)zero_of(a), t.type = p.reg(y).type;
  int exponent;
  if (std::frexp(t.ratio, &exponent) == 0.5 && exponent <= 0 && exponent >= -7 && t.type == Type::i8 && !t.zero_point)
    t.shift = 1 - exponent;  // ratio = 2^(exponent - 1)
  t.same = t.ratio == 1 && t.type == Type::i16 && !t.zero_point;
  const Place from = p.place(x), to = p.place(y);
  const ptrdiff_t n = p.reg(x).elements();
  if (segments == 32 && degree == 4) {
    const auto planes = std::make_shared<std::vector<uint8_t>>();
    for (int k = 0; k <= degree; k++)
      for (int byte = 0; byte < 2; byte++)
        for (int i = 0; i < segments; i++) planes->push_back((uint8_t)((uint16_t)(*c)[(size_t)(k * segments + i)] >> (8 * byte)));
    t.planes = planes->data();
    const auto run = p.kernels.table;
    return [=](const Frame& f) { (void)c, (void)planes; run(t, reinterpret_cast<const int16_t*>(from.at(f)), to.at(f), f.rows * n); };
  }
  int bits = 0;
  while (1 << bits < segments) bits++;
  const int between = p.scratch(Type::i16, x);
  const Place held = p.place(between);
  const Rescale rest{t.ratio, 0, 0, 0, t.zero_point, Type::i16, Type::i16, t.type};
  const auto rescale = p.kernels.rescale;
  return [=](const Frame& f) {
    const auto* in = reinterpret_cast<const int16_t*>(from.at(f));
    auto* out = reinterpret_cast<int16_t*>(held.at(f));
    for (ptrdiff_t j = 0; j < f.rows * n; j++) {
      const int u = in[j] + 32768, i = u >> (16 - bits), place = ((u << bits) & 65535) - 32768;
      int64_t h = (*c)[(size_t)(degree * segments + i)];
      for (int k = degree - 1; k > 0; k--) h = (*c)[(size_t)(k * segments + i)] + ((h * place + 16384) >> 15);
      h = (*c)[(size_t)i] + ((h * (place >> t.guard) + 16384) >> 15);
      out[j] = (int16_t)(h > 32767 ? 32767 : h < -32768 ? -32768 : h);
    }
    rescale(rest, held.at(f), to.at(f), f.rows * n);
  };
}

Step make_lookup(Arguments& a, Program& p) {
  const int x = a.reg(), y = a.reg();
  const Register &rx = p.reg(x), &ry = p.reg(y);
  need(codes(rx) && size_of(rx.type) == 1 && codes(ry) && alike(rx, ry) && !rx.constant, "a lookup");
  const auto table = std::make_shared<std::vector<int32_t>>(a.array<int32_t>(256));
  const int lowest = rx.type == Type::i8 ? -128 : 0, size = size_of(ry.type);
  const Place from = p.place(x), to = p.place(y);
  const ptrdiff_t n = rx.elements();
  return [=](const Frame& f) {
    const char* in = from.at(f);
    char* out = to.at(f);
    for (ptrdiff_t i = 0; i < f.rows * n; i++) {
      const int code = lowest ? (int)(int8_t)in[i] : (int)(uint8_t)in[i];
      memcpy(out + i * size, &(*table)[(size_t)(code - lowest)], (size_t)size);  // little-endian
    }
  };
}

Step make_rescale(Arguments& a, Program& p) {
  const int x = a.reg(), y = a.reg();
  need(codes(p.reg(x)) && codes(p.reg(y)) && alike(p.reg(x), p.reg(y)) && !p.reg(x).constant, "a rescale");
  Rescale s{};
  s.zero_a = (int)zero_of(a);
  const int64_t m = a.integer(0, int64_t(1) << 40), shift = shift_of(a);
  s.ratio_a = ratio(m, shift), s.zero_point = (int)zero_of(a);
  s.type_a = p.reg(x).type, s.type = p.reg(y).type;
  const auto run = p.kernels.rescale;
  const Place from = p.place(x), to = p.place(y);
  const ptrdiff_t n = p.reg(x).elements();
  return [=](const Frame& f) { run(s, from.at(f), to.at(f), f.rows * n); };
}

// Two inputs row by row, one of which may be a constant row.
template <class F>
Step rows_of_two(const Program& p, int a, int b, int y, F run) {
  const Place pa = p.place(a), pb = p.place(b), py = p.place(y);
  const ptrdiff_t n = p.reg(y).elements(), a_row = p.reg(a).constant ? 0 : p.reg(a).row_bytes();
  const ptrdiff_t b_row = p.reg(b).constant ? 0 : p.reg(b).row_bytes(), y_row = p.reg(y).row_bytes();
  const bool flat = a_row && b_row;
  return [=](const Frame& f) {
    if (flat) return run(pa.at(f), pb.at(f), py.at(f), f.rows * n);
    for (ptrdiff_t r = 0; r < f.rows; r++) run(pa.at(f) + r * a_row, pb.at(f) + r * b_row, py.at(f) + r * y_row, n);
  };
}

Step make_pair(Arguments& a, Program& p, bool sum) {
  const int x = a.reg(), z = a.reg(), y = a.reg();
  need(codes(p.reg(x)) && codes(p.reg(z)) && codes(p.reg(y)), "a sum or product of codes");
  need(alike(p.reg(x), p.reg(y)) && alike(p.reg(z), p.reg(y)), "a sum or product of codes");
  Rescale s{};
  s.zero_a = (int)zero_of(a), s.zero_b = (int)zero_of(a);
  constexpr int64_t LIMIT = int64_t(1) << 23;
  const int64_t m_a = a.integer(-LIMIT, LIMIT), m_b = sum ? a.integer(-LIMIT, LIMIT) : 0, shift = shift_of(a);
  s.ratio_a = ratio(m_a, shift), s.ratio_b = ratio(m_b, shift), s.zero_point = (int)zero_of(a);
  s.type_a = p.reg(x).type, s.type_b = p.reg(z).type, s.type = p.reg(y).type;
  const auto run = sum ? p.kernels.add : p.kernels.multiply;
  return rows_of_two(p, x, z, y, [=](const char* u, const char* v, char* w, ptrdiff_t n) { run(s, u, v, w, n); });
}

Step make_dequantize(Arguments& a, Program& p) {
  const int x = a.reg(), y = a.reg();
  const Register &rx = p.reg(x), &ry = p.reg(y);
  need(codes(rx) && ry.type == Type::f32 && alike(rx, ry) && !rx.constant, "a dequantization");
  const int zero = (int)zero_of(a);
  const auto scale = std::make_shared<std::vector<float>>(a.array<float>());
  const bool per_element = scale->size() > 1;
  need(scale->size() == 1 || (ptrdiff_t)scale->size() == ry.elements(), "a dequantization's scales");
  const auto run = p.kernels.dequantize;
  const Type type = rx.type;
  const Place from = p.place(x), to = p.place(y);
  const ptrdiff_t n = rx.elements(), x_row = rx.row_bytes();
  return [=](const Frame& f) {
    auto* out = reinterpret_cast<float*>(to.at(f));
    if (!per_element) return run(type, from.at(f), zero, scale->data(), false, out, f.rows * n);
    for (ptrdiff_t r = 0; r < f.rows; r++) run(type, from.at(f) + r * x_row, zero, scale->data(), true, out + r * n, n);
  };
}

Step make_binary(Arguments& a, Program& p) {
  const int x = a.reg(), z = a.reg(), y = a.reg();
  const auto op = (Binary)a.integer(0, (int64_t)Binary::max);
  for (int i : {x, z, y}) need(p.reg(i).type == Type::f32 && alike(p.reg(i), p.reg(y)), "a float operation's registers");
  const auto run = p.kernels.binary;
  return rows_of_two(p, x, z, y, [=](const char* u, const char* v, char* w, ptrdiff_t n) {
    run(op, reinterpret_cast<const float*>(u), reinterpret_cast<const float*>(v), reinterpret_cast<float*>(w), n);
  });
}

Step make_unary(Arguments& a, Program& p) {
  const int x = a.reg(), y = a.reg();
  const auto op = (Unary)a.integer(0, (int64_t)Unary::leaky_relu);
  need(p.reg(x).type == Type::f32 && p.reg(y).type == Type::f32 && alike(p.reg(x), p.reg(y)), "a float function's registers");
  need(!p.reg(x).constant, "a float function's registers");
  const auto alpha = a.scalar<float>();
  const auto run = p.kernels.unary;
  const Place from = p.place(x), to = p.place(y);
  const ptrdiff_t n = p.reg(x).elements();
  return [=](const Frame& f) {
    run(op, alpha, reinterpret_cast<const float*>(from.at(f)), reinterpret_cast<float*>(to.at(f)), f.rows * n);
  };
}

// x [count][inner] -> y [1][count]: over each vector
Step make_argmax(Arguments& a, Program& p) {
  const int x = a.reg(), y = a.reg();
  const Register &rx = p.reg(x), &ry = p.reg(y);
  need(rx.type == Type::f32 && ry.type == Type::i64 && ry.count == 1 && ry.inner == rx.count && !rx.constant, "an ArgMax");
  const Place from = p.place(x), to = p.place(y);
  const int count = rx.count, inner = rx.inner, x_stride = rx.stride, y_stride = ry.stride;
  return [=](const Frame& f) {
    const auto* in = reinterpret_cast<const float*>(from.at(f));
    auto* out = reinterpret_cast<int64_t*>(to.at(f));
    for (ptrdiff_t r = 0; r < f.rows; r++)
      for (int c = 0; c < count; c++) {
        const float* v = in + (r * count + c) * x_stride;
        int best = 0;
        for (int i = 1; i < inner && v[best] == v[best]; i++)  // the first of equals; NaN wins, as in NumPy
          if (v[i] > v[best] || v[i] != v[i]) best = i;
        out[r * y_stride + c] = best;
      }
  };
}

// x [count][inner] -> y [1][count]: the mean of each vector
Step make_mean(Arguments& a, Program& p) {
  const int x = a.reg(), y = a.reg();
  const Register &rx = p.reg(x), &ry = p.reg(y);
  need(rx.type == Type::f32 && ry.type == Type::f32 && ry.count == 1 && ry.inner == rx.count && !rx.constant, "a mean");
  const Place from = p.place(x), to = p.place(y);
  const int count = rx.count, inner = rx.inner, x_stride = rx.stride, y_stride = ry.stride;
  return [=](const Frame& f) {
    const auto* in = reinterpret_cast<const float*>(from.at(f));
    auto* out = reinterpret_cast<float*>(to.at(f));
    for (ptrdiff_t r = 0; r < f.rows; r++)
      for (int c = 0; c < count; c++) {
        double sum = 0;
        for (int i = 0; i < inner; i++) sum += in[(r * count + c) * x_stride + i];
        out[r * y_stride + c] = (float)(sum / inner);
      }
  };
}

// x [count][inner] -> y [count][inner]: the softmax of each vector, or its logarithm
Step make_softmax(Arguments& a, Program& p) {
  const int x = a.reg(), y = a.reg();
  const Register &rx = p.reg(x), &ry = p.reg(y);
  const bool logarithm = a.integer(0, 1) == 1;
  need(rx.type == Type::f32 && ry.type == Type::f32 && alike(rx, ry) && !rx.constant, "a softmax");
  const Place from = p.place(x), to = p.place(y);
  const int count = rx.count, inner = rx.inner, x_stride = rx.stride, y_stride = ry.stride;
  return [=](const Frame& f) {
    const auto* in = reinterpret_cast<const float*>(from.at(f));
    auto* out = reinterpret_cast<float*>(to.at(f));
    for (ptrdiff_t k = 0; k < f.rows * count; k++, in += x_stride, out += y_stride) {
      float most = in[0];
      for (int i = 1; i < inner; i++) most = in[i] > most ? in[i] : most;  // taken away, so that no exponential overflows
      double sum = 0;
      for (int i = 0; i < inner; i++) sum += std::exp((double)in[i] - most);
      for (int i = 0; i < inner; i++) {
        const double moved = (double)in[i] - most;
        out[i] = (float)(logarithm ? moved - std::log(sum) : std::exp(moved) / sum);
      }
    }
  };
}

template <class F>
void number(Type t, F f) {
  switch (t) {
    case Type::u8: return f(uint8_t{});
    case Type::i8: return f(int8_t{});
    case Type::u16: return f(uint16_t{});
    case Type::i16: return f(int16_t{});
    case Type::i32: return f(int32_t{});
    case Type::i64: return f(int64_t{});
    case Type::f32: return f(float{});
    case Type::f64: return f(double{});
  }
}

Step make_cast(Arguments& a, Program& p) {
  const int x = a.reg(), y = a.reg();
  need(alike(p.reg(x), p.reg(y)) && !p.reg(x).constant, "a cast");
  need(p.reg(y).type == Type::f32 || p.reg(y).type == p.reg(x).type, "a cast to integers");
  const Type type = p.reg(x).type, to = p.reg(y).type;
  const Place from = p.place(x), into = p.place(y);
  const ptrdiff_t n = p.reg(x).elements(), bytes = p.reg(x).row_bytes();
  return [=](const Frame& f) {
    if (type == to) {
      memcpy(into.at(f), from.at(f), (size_t)(f.rows * bytes));
      return;
    }
    number(type, [&](auto kind) {
      const auto* in = reinterpret_cast<const decltype(kind)*>(from.at(f));
      auto* out = reinterpret_cast<float*>(into.at(f));
      for (ptrdiff_t i = 0; i < f.rows * n; i++) out[i] = (float)in[i];
    });
  };
}

using Maker = Step (*)(Arguments&, Program&);
constexpr Maker MAKERS[] = {  // fewbit/engine/native.py numbers them
    make_copy, make_quantize, make_linear, make_linear_floats, make_table, make_lookup, make_rescale,
    [](Arguments& a, Program& p) { return make_pair(a, p, true); },
    [](Arguments& a, Program& p) { return make_pair(a, p, false); },
    make_dequantize, make_binary, make_unary, make_argmax, make_mean, make_cast, make_softmax,
};

}  // namespace

Step make_step(int64_t operation, Arguments& a, Program& p) {
  need(operation < (int64_t)std::size(MAKERS), "an operation is unknown");
  return MAKERS[operation](a, p);
}

}  // namespace fewbit
