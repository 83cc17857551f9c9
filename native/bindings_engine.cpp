// fewbit._native.Engine: a type whose vectorcall speaks NumPy's C API (docs/engine.md says why).
#include "bindings.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <structmember.h>

#include <chrono>

#include "dispatch.h"
#include "engine.h"

namespace nb = nanobind;
using fewbit::Engine;
using fewbit::Source;
using fewbit::Type;

namespace {

constexpr int MOST = 16;  // inputs, and outputs
PyTypeObject* engine_type = nullptr;

constexpr int NUMPY_TYPES[] = {NPY_UINT8, NPY_INT8, NPY_UINT16, NPY_INT16, NPY_INT32, NPY_INT64, NPY_FLOAT32, NPY_FLOAT64};

struct Shape {
  int n = 0;
  npy_intp dims[7] = {};
  npy_intp elements() const {
    npy_intp e = 1;
    for (int i = 0; i < n; i++) e *= dims[i];
    return e;
  }
};

struct Object {
  PyObject_HEAD
  vectorcallfunc call;
  Engine* engine;
  PyObject* inputs;  // {name: shape}
  PyObject* outputs; // [shape]
  std::vector<std::string>* names;
  std::vector<Shape>* in;
  std::vector<Shape>* out;
};

const char* type_name(Type t) {
  constexpr const char* names[] = {"uint8", "int8", "uint16", "int16", "int32", "int64", "float32", "float64"};
  return names[(int)t];
}

// What input k holds, as the engine wants it; rows: -1 before the first input says how many, 0 for one without a batch.
bool observe(const Object* o, int k, PyObject* given, Source& source, npy_intp& rows, bool& single) {
  const std::string& name = (*o->names)[(size_t)k];
  const Shape& shape = (*o->in)[(size_t)k];
  const Type held = o->engine->program.reg(o->engine->program.inputs[(size_t)k]).type;
  if (!PyArray_Check(given)) return refuse("input " + name + ": a NumPy array is expected, not " + Py_TYPE(given)->tp_name);
  auto* a = reinterpret_cast<PyArrayObject*>(given);
  const int number = PyArray_TYPE(a), n = PyArray_NDIM(a);
  source.type = held;
  if (number != NUMPY_TYPES[(int)held]) {
    if (held == Type::f32 && number == NPY_FLOAT64) source.type = Type::f64;
    else {
      const auto found = nb::steal<nb::object>(PyObject_Str(reinterpret_cast<PyObject*>(PyArray_DESCR(a))));
      return refuse("input " + name + ": dtype " + nb::cast<std::string>(found) + "; convert it to " + type_name(held));
    }
  }
  if (!PyArray_ISCARRAY_RO(a)) return refuse("input " + name + ": it is not C-contiguous; use numpy.ascontiguousarray");
  const npy_intp* dims = PyArray_DIMS(a);
  const bool alone = n == shape.n;
  bool fits = alone || n == shape.n + 1;
  for (int i = 0; fits && i < shape.n; i++) fits = dims[i + !alone] == shape.dims[i];
  const npy_intp count = alone ? 1 : fits ? dims[0] : 0;
  if (fits && rows < 0) rows = count, single = alone;
  if (!fits || count != rows || alone != single) {
    const std::string wanted = listed(shape.dims, shape.n);
    const std::string batch = rows < 0 ? "batch" : std::to_string(rows);
    return refuse("input " + name + ": expected [" + wanted + "] or [" + batch + (shape.n ? ", " : "") + wanted + "], found [" + listed(dims, n) + "]");
  }
  source.data = PyArray_DATA(a);
  return true;
}

// One output's array: the caller's, checked, or a new one.
PyObject* result(const Object* o, int k, PyObject* given, npy_intp rows, bool single) {
  const Shape& shape = (*o->out)[(size_t)k];
  const Type type = o->engine->program.reg(o->engine->program.outputs[(size_t)k]).type;
  npy_intp dims[8] = {rows};
  const int n = shape.n + !single;
  for (int i = 0; i < shape.n; i++) dims[i + !single] = shape.dims[i];
  if (!given) return PyArray_SimpleNew(n, dims, NUMPY_TYPES[(int)type]);
  auto* a = reinterpret_cast<PyArrayObject*>(given);
  if (!PyArray_Check(given) || PyArray_TYPE(a) != NUMPY_TYPES[(int)type] || !PyArray_ISCARRAY(a) || PyArray_NDIM(a) != n ||
      !PyArray_CompareLists(PyArray_DIMS(a), dims, n)) {
    refuse(std::string("out: expected a writeable, C-contiguous ") + type_name(type) + " array [" + listed(dims, n) + "]");
    return nullptr;
  }
  Py_INCREF(given);
  return given;
}

bool run(const Object* o, const Source* in, void* const* out, npy_intp rows, int threads) {
  try {
    if (rows == 1) o->engine->one(in, out);
    else {
      nb::gil_scoped_release free;
      o->engine->many(in, out, rows, threads);
    }
    return true;
  } catch (const fewbit::Nan& e) {
    const Shape& shape = (*o->in)[(size_t)e.input];
    npy_intp left = e.index, unit = shape.elements();
    std::string index = std::to_string(left / unit);
    for (int i = 0; i < shape.n; i++) {
      left %= unit, unit /= shape.dims[i];
      index += ", " + std::to_string(left / unit);
    }
    return refuse("input " + (*o->names)[(size_t)e.input] + ": element (" + index + ") is NaN");
  } catch (const std::exception& e) {
    return refuse(e.what());
  }
}

bool gather(const Object* o, PyObject* given, Source* in, npy_intp& rows, bool& single) {
  const auto n = (int)o->names->size();
  if (!PyDict_Check(given)) {
    if (n == 1) return observe(o, 0, given, in[0], rows, single);
    std::string all;
    for (const auto& name : *o->names) all += (all.empty() ? "" : ", ") + name;
    return refuse("this policy takes a dictionary of observations: " + all);
  }
  for (int k = 0; k < n; k++) {
    PyObject* one = PyDict_GetItemString(given, (*o->names)[(size_t)k].c_str());
    if (!one) return refuse("input " + (*o->names)[(size_t)k] + " is missing");
    if (!observe(o, k, one, in[k], rows, single)) return false;
  }
  return true;
}

PyObject* call(PyObject* self, PyObject* const* args, size_t nargsf, PyObject* names) {
  auto* o = reinterpret_cast<Object*>(self);
  PyObject* out = nullptr;
  long threads = 1;
  const Py_ssize_t nargs = PyVectorcall_NARGS(nargsf), named = names ? PyTuple_GET_SIZE(names) : 0;
  if (nargs != 1) {
    refuse("one observation, or one batch of them, is expected");
    return nullptr;
  }
  for (Py_ssize_t i = 0; i < named; i++) {
    PyObject *name = PyTuple_GET_ITEM(names, i), *value = args[nargs + i];
    if (PyUnicode_CompareWithASCIIString(name, "out") == 0) out = value == Py_None ? nullptr : value;
    else if (PyUnicode_CompareWithASCIIString(name, "threads") == 0) threads = PyLong_AsLong(value);
    else {
      refuse("the keywords are out and threads");
      return nullptr;
    }
  }
  if (PyErr_Occurred()) return nullptr;
  if (threads < 1 || threads > 1024) {
    refuse("threads: a number from 1 to 1024 is expected");
    return nullptr;
  }
  Source in[MOST];
  npy_intp rows = -1;
  bool single = false;
  if (!gather(o, args[0], in, rows, single)) return nullptr;
  const auto n = (int)o->out->size();
  if (n > 1 && out && !(PyTuple_Check(out) && PyTuple_GET_SIZE(out) == n)) {
    refuse("out: a tuple of " + std::to_string(n) + " arrays is expected");
    return nullptr;
  }
  PyObject* made[MOST];
  void* data[MOST];
  for (int k = 0; k < n; k++) {
    made[k] = result(o, k, !out ? nullptr : n > 1 ? PyTuple_GET_ITEM(out, k) : out, rows, single);
    if (!made[k]) {
      while (k--) Py_DECREF(made[k]);
      return nullptr;
    }
    data[k] = PyArray_DATA(reinterpret_cast<PyArrayObject*>(made[k]));
  }
  const bool good = rows == 0 || run(o, in, data, rows, (int)threads);
  if (good && n == 1) return made[0];
  PyObject* all = good ? PyTuple_New(n) : nullptr;
  for (int k = 0; k < n; k++) {
    if (all) PyTuple_SET_ITEM(all, k, made[k]);
    else Py_DECREF(made[k]);
  }
  return all;
}

bool shape_of(PyObject* dims, Shape& s) {
  const auto list = nb::steal<nb::object>(PySequence_Tuple(dims));
  if (!list.is_valid()) return false;
  s.n = (int)PyTuple_GET_SIZE(list.ptr());
  if (s.n > 7) return refuse("an input or output has more than seven dimensions");
  for (int i = 0; i < s.n; i++) s.dims[i] = PyLong_AsSsize_t(PyTuple_GET_ITEM(list.ptr(), i));
  return !PyErr_Occurred();
}

// Engine(program: bytes, inputs: {name: shape}, outputs: [shape], instruction_set: str)
PyObject* create(PyTypeObject* type, PyObject* args, PyObject*) {
  const char *bytes, *name;
  Py_ssize_t size;
  PyObject *inputs, *outputs;
  if (!PyArg_ParseTuple(args, "y#O!O!s", &bytes, &size, &PyDict_Type, &inputs, &PyList_Type, &outputs, &name)) return nullptr;
  auto made = nb::steal<nb::object>(type->tp_alloc(type, 0));
  if (!made.is_valid()) return nullptr;
  auto* o = reinterpret_cast<Object*>(made.ptr());
  o->call = call;
  o->names = new std::vector<std::string>;
  o->in = new std::vector<Shape>, o->out = new std::vector<Shape>;
  PyObject *key, *value;
  for (Py_ssize_t at = 0; PyDict_Next(inputs, &at, &key, &value);) {
    Shape s;
    const char* text = PyUnicode_AsUTF8(key);
    if (!text || !shape_of(value, s)) return nullptr;
    o->names->push_back(text), o->in->push_back(s);
  }
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(outputs); i++) {
    Shape s;
    if (!shape_of(PyList_GET_ITEM(outputs, i), s)) return nullptr;
    o->out->push_back(s);
  }
  try {
    o->engine = new Engine(bytes, (size_t)size, fewbit::choose(name));
  } catch (const std::exception& e) {
    refuse(e.what());
    return nullptr;
  }
  const auto& p = o->engine->program;
  bool fits = p.inputs.size() == o->in->size() && p.outputs.size() == o->out->size() && p.inputs.size() <= MOST && p.outputs.size() <= MOST;
  for (size_t k = 0; fits && k < o->in->size(); k++) fits = (*o->in)[k].elements() == p.reg(p.inputs[k]).inner;
  for (size_t k = 0; fits && k < o->out->size(); k++)
    fits = (*o->out)[k].elements() == (npy_intp)p.reg(p.outputs[k]).inner * p.reg(p.outputs[k]).count;
  if (!fits) {
    refuse("damaged program: its inputs and outputs are not the ones named, or more than 16");
    return nullptr;
  }
  o->inputs = PyDict_Copy(inputs);
  o->outputs = PyList_AsTuple(outputs);
  return made.release().ptr();
}

void destroy(PyObject* self) {
  auto* o = reinterpret_cast<Object*>(self);
  delete o->engine;
  delete o->names;
  delete o->in;
  delete o->out;
  Py_XDECREF(o->inputs);
  Py_XDECREF(o->outputs);
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyObject* instruction_set(PyObject* self, void*) {
  return PyUnicode_FromString(reinterpret_cast<Object*>(self)->engine->program.kernels.name);
}

PyObject* executor(PyObject*, void*) { return PyUnicode_FromString("native"); }

PyObject* reset(PyObject*, PyObject*) { Py_RETURN_NONE; }

// nanoseconds(observation, calls): one row in C++ alone, the least of 20 rounds of `calls` calls
PyObject* nanoseconds(PyObject* self, PyObject* args) {
  auto* o = reinterpret_cast<Object*>(self);
  PyObject* given;
  long calls;
  if (!PyArg_ParseTuple(args, "Ol", &given, &calls)) return nullptr;
  Source in[MOST];
  npy_intp rows = -1;
  bool single = false;
  if (!gather(o, given, in, rows, single)) return nullptr;
  std::vector<std::vector<char>> held;
  void* data[MOST];
  for (size_t k = 0; k < o->out->size(); k++) {
    held.emplace_back((size_t)(rows * (*o->out)[k].elements() * 8));
    data[k] = held.back().data();
  }
  double best = 1e30;
  try {
    for (int round = 0; round < 20; round++) {
      const auto start = std::chrono::steady_clock::now();
      for (long i = 0; i < calls; i++) {
        if (rows == 1) o->engine->one(in, data);
        else o->engine->many(in, data, rows, 1);
      }
      const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - start;
      best = std::min(best, took.count() / (double)calls);
    }
  } catch (const std::exception& e) {
    refuse(e.what());
    return nullptr;
  }
  return PyFloat_FromDouble(best);
}

PyMethodDef methods[] = {
    {"reset", reset, METH_NOARGS, "Back to the state before the first observation: this policy has none."},
    {"nanoseconds", nanoseconds, METH_VARARGS, "nanoseconds(observation, calls): of one call in C++ alone."},
    {nullptr, nullptr, 0, nullptr}};
PyGetSetDef properties[] = {{"instruction_set", instruction_set, nullptr, "Whose kernels run.", nullptr},
                            {"executor", executor, nullptr, "native", nullptr},
                            {nullptr, nullptr, nullptr, nullptr, nullptr}};
PyMemberDef members[] = {{"__vectorcalloffset__", T_PYSSIZET, offsetof(Object, call), READONLY, nullptr},
                         {"inputs", T_OBJECT, offsetof(Object, inputs), READONLY, "name -> shape without the batch"},
                         {"outputs", T_OBJECT, offsetof(Object, outputs), READONLY, "shapes without the batch"},
                         {nullptr, 0, 0, 0, nullptr}};
PyType_Slot slots[] = {{Py_tp_new, reinterpret_cast<void*>(create)},
                       {Py_tp_dealloc, reinterpret_cast<void*>(destroy)},
                       {Py_tp_call, reinterpret_cast<void*>(PyVectorcall_Call)},
                       {Py_tp_methods, methods},
                       {Py_tp_getset, properties},
                       {Py_tp_members, members},
                       {Py_tp_doc, const_cast<char*>("engine(observation or batch, *, out=None, threads=1) -> action or actions")},
                       {0, nullptr}};
PyType_Spec spec = {"fewbit._native.Engine", sizeof(Object), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL, slots};

}  // namespace

bool run_rows(PyObject* engine, const void* observations, void* const* outputs, npy_intp rows) {
  auto* o = reinterpret_cast<Object*>(engine);
  if (Py_TYPE(engine) != engine_type || o->in->size() != 1) return refuse("an engine of one input is expected");
  const Source in{observations, o->engine->program.reg(o->engine->program.inputs[0]).type};
  return run(o, &in, outputs, rows, 1);
}

npy_intp row_bytes(PyObject* engine, int output) {
  auto* o = reinterpret_cast<Object*>(engine);
  if (Py_TYPE(engine) != engine_type || o->in->size() != 1 || output >= (int)o->out->size()) return -1;
  const auto& p = o->engine->program;
  const int held = output < 0 ? p.inputs[0] : p.outputs[(size_t)output];
  return (output < 0 ? o->in->front() : (*o->out)[(size_t)output]).elements() * fewbit::size_of(p.reg(held).type);
}

void bind_engine(nb::module_& m) {
  PyObject* type = PyType_FromSpec(&spec);
  if (!type) throw nb::python_error();
  engine_type = reinterpret_cast<PyTypeObject*>(type);
  m.attr("Engine") = nb::steal<nb::object>(type);
}
