// S6: y = saturate16(c0[i] + mulhrs(h, f >> g)), h by Horner's rule in 16 bits; i the segment, f the place inside it.
//
// V brings SHORTS codes to a vector and: segments (the tables, held in registers where they fit), load, place, segment,
// lookup, mulhrs, add, add_saturating, shift_right, rounding_shift (S4 where it is a shift), store.
#pragma once
#include "flat_loop.h"

namespace fewbit {
namespace {

constexpr int SEGMENTS = 32, DEGREE = 4;

template <class V>
void table(const Table& t, const int16_t* x, char* y, ptrdiff_t n) {
  const typename V::Segments segments(t.c);
  const Rescale rest{t.ratio, 0, 0, 0, t.zero_point, Type::i16, Type::i16, t.type};
  for (ptrdiff_t j = 0; j < n; j += V::SHORTS) {
    const auto u = V::offset(V::load(x + j));
    const auto f = V::place(u);
    const auto i = V::segment(u);
    auto h = segments.template lookup<DEGREE>(i);
    h = V::add(segments.template lookup<3>(i), V::mulhrs(h, f));
    h = V::add(segments.template lookup<2>(i), V::mulhrs(h, f));
    h = V::add(segments.template lookup<1>(i), V::mulhrs(h, f));
    h = V::add_saturating(segments.template lookup<0>(i), V::mulhrs(h, V::shift_right(f, t.guard)));
    if (t.shift) V::store_bytes(y + j, V::rounding_shift(h, t.shift));
    else {
      alignas(64) int16_t held[V::SHORTS];
      V::store(held, h);
      rescale_flat(rest, reinterpret_cast<const char*>(held), y + j * size_of(t.type), V::SHORTS);
    }
  }
}

}  // namespace
}  // namespace fewbit
