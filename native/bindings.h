// What the parts of the Python module share: NumPy's C API, the error, and an Engine object's call. To be included first.
#pragma once
#define PY_SSIZE_T_CLEAN
#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL fewbit_numpy
#ifndef FEWBIT_IMPORTS_NUMPY
#define NO_IMPORT_ARRAY
#endif
#include <nanobind/nanobind.h>
#include <numpy/arrayobject.h>

#include <string>

bool refuse(const std::string& message);  // a FewbitError; false

// "3, 84" of an array's dimensions
std::string listed(const npy_intp* dims, int n);

// A batch through an _native.Engine of one input, which holds what the engine's register holds; false where there is an error.
bool run_rows(PyObject* engine, const void* observations, void* const* outputs, npy_intp rows);

// Bytes of a row of such an engine's output, or of its input (-1); -1 where it has none or is no engine of one input.
npy_intp row_bytes(PyObject* engine, int output);

void bind_engine(nanobind::module_& m);
void bind_grouped(nanobind::module_& m);
void bind_rollout(nanobind::module_& m);
