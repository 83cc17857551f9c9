// The Python module: what its parts share, the parts, and what is asked about the CPU.
#define FEWBIT_IMPORTS_NUMPY
#include "bindings.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <chrono>

#include "dispatch.h"

namespace nb = nanobind;

namespace {

PyObject* error_type = nullptr;  // fewbit.errors.FewbitError

double peak(const std::string& name) {
  const auto& k = fewbit::choose(name);
  double best = 0;
  for (int round = 0; round < 20; round++) {
    const auto start = std::chrono::steady_clock::now();
    const double done = k.peak(20000);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    best = std::max(best, done / took.count());
  }
  return best;
}

int import_numpy() {
  import_array1(-1);
  return 0;
}

}  // namespace

bool refuse(const std::string& message) {
  PyErr_SetString(error_type, message.c_str());
  return false;
}

std::string listed(const npy_intp* dims, int n) {
  std::string s;
  for (int i = 0; i < n; i++) s += (i ? ", " : "") + std::to_string(dims[i]);
  return s;
}

NB_MODULE(_native, m) {
  m.doc() = "Runs flat programs with the CPU's best instruction set.";
  if (import_numpy() < 0) throw nb::python_error();
  error_type = nb::object(nb::module_::import_("fewbit.errors").attr("FewbitError")).release().ptr();
  bind_engine(m);
  bind_grouped(m);
  bind_rollout(m);
  m.def("available", [] {
    std::vector<std::string> names;
    for (const auto* k : fewbit::available()) names.push_back(k->name);
    return names;
  }, "Names of the instruction sets that this CPU runs, best first.");
  m.def("built", fewbit::built, "Names of the instruction sets in this build.");
  m.def("peak", peak, "Multiply-accumulates a second of an instruction set's 8-bit product, on registers alone.");
}
