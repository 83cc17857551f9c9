// S6: y = saturate16(c0[i] + mulhrs(h, f >> g)), h by Horner's rule in 16 bits; i the segment, f the place inside it.
//
// V brings SHORTS codes to a vector and its operations; Rest, of 16 codes, where SHORTS is more; and Segments, the tables,
// held in registers where they fit. Behind the function comes S4: a shift, nothing, or what any rescale does.
#pragma once
#include "flat_loop.h"

namespace fewbit {
namespace {

constexpr int SEGMENTS = 32, DEGREE = 4;

template <class V>
inline typename V::Codes polynomial(const typename V::Segments& segments, int guard, typename V::Codes codes) {
  const auto u = V::offset(codes);
  const auto f = V::place(u);
  const auto i = V::segment(u);
  auto h = segments.template lookup<DEGREE>(i);
  h = V::add(segments.template lookup<3>(i), V::mulhrs(h, f));
  h = V::add(segments.template lookup<2>(i), V::mulhrs(h, f));
  h = V::add(segments.template lookup<1>(i), V::mulhrs(h, f));
  return V::add_saturating(segments.template lookup<0>(i), V::mulhrs(h, V::shift_right(f, guard)));
}

template <class V>
void table(const Table& t, const int16_t* x, char* y, ptrdiff_t n) {
  const typename V::Segments segments(t);
  const auto each = [&](auto vectors, ptrdiff_t j, ptrdiff_t end, auto write) {
    using W = decltype(vectors);
    for (; j + W::SHORTS <= end; j += W::SHORTS) write(vectors, j, polynomial<W>(segments, t.guard, W::load(x + j)));
    return j;
  };
  const auto all = [&](ptrdiff_t first, ptrdiff_t end, auto write) {
    first = each(V{}, first, end, write);
    if constexpr (V::SHORTS > BLOCK) each(typename V::Rest{}, first, end, write);
  };
  if (t.shift) return all(0, n, [&](auto w, ptrdiff_t j, auto h) { w.store_bytes(y + j, w.rounding_shift(h, t.shift)); });
  if (t.same) return all(0, n, [&](auto w, ptrdiff_t j, auto h) { w.store(reinterpret_cast<int16_t*>(y) + j, h); });
  const Rescale rest{t.ratio, 0, 0, 0, t.zero_point, Type::i16, Type::i16, t.type};
  alignas(64) int16_t held[CHUNK];
  for (ptrdiff_t j = 0; j < n; j += CHUNK) {
    const ptrdiff_t m = chunk(n - j);
    all(j, j + m, [&](auto w, ptrdiff_t k, auto h) { w.store(held + (k - j), h); });
    rescale_flat(rest, reinterpret_cast<const char*>(held), y + j * size_of(t.type), m);
  }
}

}  // namespace
}  // namespace fewbit
