// The table of one instruction set, from its vectors: V for products (linear_loop.h), S for 16-bit codes (table_loop.h).
#pragma once
#include "flat_loop.h"
#include "float_loop.h"
#include "grouped_loop.h"
#include "linear_loop.h"
#include "table_loop.h"

namespace fewbit {
namespace {

template <class V, class S>
constexpr Kernels kernels_of(const char* name, Bytes bytes, bool signed_bytes = false) {
  Kernels k{};
  k.name = name;
  k.bytes = bytes;
  k.signed_bytes = signed_bytes;
  if constexpr (V::HAS_BYTES) k.linear_bytes = linear<V, ByteDot>;
  if constexpr (V::HAS_NIBBLES) k.linear_nibbles = linear<V, NibbleDot>;
  k.linear_words = linear<V, WordDot>;
  k.linear_floats = panels<V, FloatDot<V>>;
  k.load = load_flat<float>;
  k.load_doubles = load_flat<double>;
  k.table = table<S>;
  k.quantize = quantize_flat;
  k.rescale = rescale_flat;
  k.add = add_flat;
  k.multiply = multiply_flat;
  k.dequantize = dequantize_flat;
  k.widen = widen_flat;
  k.binary = binary_flat;
  k.unary = unary_flat;
  k.tile = V::TILE;
  k.grouped = grouped<V, false>;
  k.grouped_floats = grouped<V, true>;
  k.quantize_group = quantize_group;
  k.peak = peak<V>;
  return k;
}

}  // namespace
}  // namespace fewbit
