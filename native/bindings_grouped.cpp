// fewbit._native.GroupedWeight: a language model's layer. Calls take addresses, because a check of two tensors costs more than a
// small layer; fewbit.llm.linear makes them from tensors whose shape and type it has checked.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <stdexcept>

#include "dispatch.h"
#include "grouped_weight.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using fewbit::GroupedShape;
using Bytes = nb::ndarray<uint8_t, nb::c_contig, nb::device::cpu>;

constexpr ptrdiff_t LONG = 1 << 22;  // multiplications that take long enough, about 0.1 ms, to let other Python threads run

struct Held {
  Bytes panels;  // keeps the memory alive
  fewbit::GroupedWeight weight;
};

void make(Held* self, Bytes panels, int out, int in, int bits, int group_size, bool zero, bool bias, const std::string& set) {
  const GroupedShape shape{out, in, bits, group_size, zero, bias};
  shape.check();
  if (panels.size() != shape.places().end || reinterpret_cast<uintptr_t>(panels.data()) % 64)
    throw std::runtime_error("panels must be " + std::to_string(shape.places().end) + " bytes on a boundary of 64");
  new (self) Held{panels, fewbit::GroupedWeight(shape, panels.data(), fewbit::choose(set))};
}

void fill(Held& h, nb::ndarray<const uint8_t, nb::c_contig> codes, nb::ndarray<const uint16_t, nb::c_contig> scale,
          std::optional<nb::ndarray<const uint8_t, nb::c_contig>> zero, std::optional<nb::ndarray<const float, nb::c_contig>> bias) {
  const GroupedShape& s = h.weight.shape;
  const size_t scales = (size_t)s.out * (size_t)s.groups(), row = ((size_t)s.in * (size_t)s.bits + 7) / 8;
  if (codes.size() != row * (size_t)s.out || scale.size() != scales || zero.has_value() != s.zero || bias.has_value() != s.bias ||
      (zero && zero->size() != scales) || (bias && bias->size() != (size_t)s.out))
    throw std::runtime_error("codes, scale, zero point or bias are not of the weight's shape");
  h.weight.fill(codes.data(), scale.data(), zero ? zero->data() : nullptr, bias ? bias->data() : nullptr);
}

void run(const Held& h, uintptr_t x, uintptr_t y, ptrdiff_t rows, bool floats, int threads) {
  const auto work = [&] { h.weight.run(reinterpret_cast<const float*>(x), reinterpret_cast<float*>(y), rows, floats, threads); };
  if ((ptrdiff_t)h.weight.shape.in * h.weight.shape.out * rows < LONG) return work();
  const nb::gil_scoped_release free;
  work();
}

void rows(const Held& h, uintptr_t which, ptrdiff_t n, uintptr_t y) {
  const auto* at = reinterpret_cast<const int64_t*>(which);
  for (ptrdiff_t i = 0; i < n; i++)
    if (at[i] < 0 || at[i] >= h.weight.shape.out) throw std::runtime_error("row " + std::to_string(at[i]) + " of " + std::to_string(h.weight.shape.out));
  const nb::gil_scoped_release free;
  h.weight.rows(at, n, reinterpret_cast<float*>(y));
}

}  // namespace

void bind_grouped(nb::module_& m) {
  nb::class_<Held>(m, "GroupedWeight", "A weight [out, in] of 8, 4, 3 or 2 bits in groups of columns, in panels that the caller owns.")
      .def("__init__", &make, "panels"_a, "out"_a, "in_"_a, "bits"_a, "group_size"_a, "zero"_a, "bias"_a, "instruction_set"_a = "")
      .def_static("nbytes", [](int out, int in, int bits, int group_size, bool zero, bool bias) {
        const GroupedShape shape{out, in, bits, group_size, zero, bias};
        shape.check();
        return shape.places().end;
      }, "Bytes of the panels.")
      .def("fill", &fill, "codes"_a, "scale"_a, "zero"_a.none(), "bias"_a.none(), "Into the panels, from what packed.PackedWeight holds; scale as uint16.")
      .def("run", &run, "run(x, y, rows, floats, threads): addresses of float32 [rows, in] and [rows, out].")
      .def("rows", &rows, "rows(which, n, y): addresses of n int64 rows and of float32 [n, in].")
      .def_prop_ro("instruction_set", [](const Held& h) { return h.weight.kernels.name; });
}
