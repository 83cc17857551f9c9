// fewbit._native.Explorer, and `rollout`: steps of Gymnasium environments with nothing between the network and env.step but this.
#include "bindings.h"

#include <nanobind/stl/pair.h>

#include <stdexcept>

#include "explore.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

constexpr int HEADS = 2;  // outputs of a network that explores, at most

template <class T> constexpr int NUMBER = NPY_FLOAT32;
template <> constexpr int NUMBER<double> = NPY_FLOAT64;
template <> constexpr int NUMBER<int64_t> = NPY_INT64;
template <> constexpr int NUMBER<bool> = NPY_BOOL;

PyArrayObject* array(nb::handle given) {
  auto* a = reinterpret_cast<PyArrayObject*>(given.ptr());
  if (!PyArray_Check(given.ptr()) || !PyArray_ISCARRAY(a)) throw std::runtime_error("a C-contiguous array is expected");
  return a;
}

// The memory of named[name], which holds so many elements; null where there is none.
template <class T>
T* memory(const nb::dict& named, const char* name, npy_intp elements) {
  if (!named.contains(name)) return nullptr;
  PyArrayObject* a = array(named[name]);
  if (PyArray_TYPE(a) != NUMBER<T> || PyArray_SIZE(a) != elements)
    throw std::runtime_error(std::string(name) + " has not the type or size that is expected");
  return static_cast<T*>(PyArray_DATA(a));
}

// The arrays that rl/explore.py made, and what explores in them.
struct Acting {
  nb::dict arrays;
  nb::list heads;
  fewbit::Explorer x{};
  int outputs = 0;
  char* head[HEADS] = {};
  npy_intp head_bytes[HEADS] = {};  // of a step
  const char* given = nullptr;      // what environments take, [steps or 1][rows] of item
  npy_intp given_step = 0, item_bytes = 0;
  PyArray_Descr* descr = nullptr;
  int item_type = 0, item_dims = 0;
  npy_intp item[NPY_MAXDIMS] = {};

  Acting(int kind, nb::list heads_, nb::dict arrays_, npy_intp every, bool squash) : arrays(arrays_), heads(heads_) {
    outputs = (int)nb::len(heads);
    if (outputs < 1 || outputs > HEADS) throw std::runtime_error("one or two heads are expected");
    PyArrayObject* first = array(heads[0]);
    if (PyArray_NDIM(first) < 2) throw std::runtime_error("heads are [steps, rows, ...]");
    x.kind = (fewbit::Explorer::Kind)kind, x.every = every, x.squash = squash;
    x.steps = PyArray_DIM(first, 0), x.rows = PyArray_DIM(first, 1);
    x.width = PyArray_NDIM(first) > 2 ? PyArray_DIM(first, 2) : 1;
    for (int k = 0; k < outputs; k++) {
      PyArrayObject* h = array(heads[(size_t)k]);
      if (PyArray_DIM(h, 0) != x.steps || PyArray_DIM(h, 1) != x.rows) throw std::runtime_error("heads are [steps, rows, ...]");
      head[k] = static_cast<char*>(PyArray_DATA(h)), head_bytes[k] = PyArray_NBYTES(h) / x.steps;
    }
    place();
    environments_take();
  }

  void place() {
    const npy_intp all = x.steps * x.rows * x.width;
    using fewbit::Explorer;
    if (x.kind == Explorer::deterministic) return;
    const auto floats = [&](int k, npy_intp n) {
      PyArrayObject* a = array(heads[(size_t)k]);
      if (PyArray_TYPE(a) != NPY_FLOAT32 || PyArray_SIZE(a) != n) throw std::runtime_error("a head has not the size that is expected");
      return static_cast<const float*>(PyArray_DATA(a));
    };
    x.head = floats(0, all);
    if (x.kind == Explorer::categorical || x.kind == Explorer::epsilon) {
      x.numbers = need(memory<int64_t>(arrays, "actions", x.steps * x.rows));
      x.draws = need(memory<double>(arrays, "noise", x.kind == Explorer::epsilon ? x.steps * x.rows : all));
      if (x.kind == Explorer::epsilon) {
        x.others = need(memory<int64_t>(arrays, "others", x.steps * x.rows));
        x.epsilons = need(memory<double>(arrays, "epsilons", x.steps));
      }
      return;
    }
    if (x.kind == Explorer::squashed) x.second = floats(1, all);
    npy_intp drawn = all;
    if (x.kind == Explorer::gsde) {
      x.features = PyArray_DIM(array(heads[1]), 2);
      x.second = floats(1, x.steps * x.rows * x.features);
      drawn = (x.every ? (x.steps + x.every - 1) / x.every : 1) * x.rows * x.features * x.width;
    }
    x.noise = need(memory<float>(arrays, "noise", drawn));
    x.before = need(memory<float>(arrays, "before", all));
    x.actions = need(memory<float>(arrays, "actions", all));
    x.bounded = memory<float>(arrays, "bounded", x.rows * x.width);
    x.low = need(memory<float>(arrays, "low", x.width)), x.high = need(memory<float>(arrays, "high", x.width));
  }

  void environments_take() {
    PyArrayObject* g = array(arrays["given"]);
    const npy_intp blocks = PyArray_DIM(g, 0);
    if (PyArray_NDIM(g) < 2 || (blocks != 1 && blocks != x.steps) || PyArray_DIM(g, 1) != x.rows)
      throw std::runtime_error("given is [steps or 1, rows, ...]");
    given = static_cast<const char*>(PyArray_DATA(g)), descr = PyArray_DESCR(g), item_type = PyArray_TYPE(g), item_dims = PyArray_NDIM(g) - 2;
    std::copy_n(PyArray_DIMS(g) + 2, item_dims, item);
    item_bytes = PyArray_NBYTES(g) / (blocks * x.rows), given_step = blocks == 1 ? 0 : item_bytes * x.rows;
  }

  template <class T>
  static T* need(T* p) {
    if (!p) throw std::runtime_error("an array is missing");
    return p;
  }

  void act(npy_intp t) const {
    if (t < 0 || t >= x.steps) throw std::runtime_error("a step outside of the block");
    x.act(t);
  }

  // What env.step of a row takes at a step: a NumPy number, as a space's own sample is (Gymnasium checks it faster than Python's),
  // or an array of its own, which an environment may keep.
  PyObject* action(npy_intp t, npy_intp row) const {
    const char* from = given + t * given_step + row * item_bytes;
    if (!item_dims) return PyArray_Scalar(const_cast<char*>(from), descr, nullptr);
    PyObject* made = PyArray_SimpleNew(item_dims, const_cast<npy_intp*>(item), item_type);
    if (made) memcpy(PyArray_DATA(reinterpret_cast<PyArrayObject*>(made)), from, (size_t)item_bytes);
    return made;
  }
};

// An observation's shape and type, and how one is put into its place.
struct Observation {
  int type, n;
  npy_intp dims[NPY_MAXDIMS], elements, bytes;

  explicit Observation(PyArrayObject* current) : type(PyArray_TYPE(current)), n(PyArray_NDIM(current) - 1) {
    std::copy_n(PyArray_DIMS(current) + 1, n, dims);
    elements = PyArray_SIZE(current) / PyArray_DIM(current, 0), bytes = elements * PyArray_ITEMSIZE(current);
  }

  bool store(PyObject* given, char* to) const {
    auto* a = reinterpret_cast<PyArrayObject*>(given);
    if (!PyArray_Check(given) || !PyArray_ISCARRAY_RO(a) || (PyArray_TYPE(a) != type && PyArray_TYPE(a) != NPY_FLOAT64)) {
      const auto made = nb::steal<nb::object>(PyArray_FROM_OTF(given, type, NPY_ARRAY_CARRAY | NPY_ARRAY_FORCECAST));
      return made.is_valid() && put(reinterpret_cast<PyArrayObject*>(made.ptr()), to);
    }
    return put(a, to);
  }

 private:
  bool put(PyArrayObject* a, char* to) const {
    if (PyArray_NDIM(a) != n || !PyArray_CompareLists(PyArray_DIMS(a), const_cast<npy_intp*>(dims), n))
      return refuse("the environment gave an observation of shape [" + listed(PyArray_DIMS(a), PyArray_NDIM(a)) + "], its space has [" + listed(dims, n) + "]");
    if (PyArray_TYPE(a) == type) memcpy(to, PyArray_DATA(a), (size_t)bytes);
    else if (type == NPY_FLOAT32)
      std::copy_n(static_cast<const double*>(PyArray_DATA(a)), elements, reinterpret_cast<float*>(to));
    else {
      const auto made = nb::steal<nb::object>(PyArray_FROM_OTF(reinterpret_cast<PyObject*>(a), type, NPY_ARRAY_CARRAY | NPY_ARRAY_FORCECAST));
      if (!made.is_valid()) return false;
      memcpy(to, PyArray_DATA(reinterpret_cast<PyArrayObject*>(made.ptr())), (size_t)bytes);
    }
    return true;
  }
};

// Environments, and the columns that their steps go into.
struct Stepping {
  const Acting& acting;
  PyObject *engine, *steps, *resets;
  Observation one;
  npy_intp rows, count;
  char *observations, *current;  // [count][rows], [rows] of observations
  float* rewards;
  bool *terminated, *truncated, *valid;
  int64_t* left;      // episodes of each environment, or null
  volatile int64_t* made;  // watched by another process
  nb::list ends;

  char* place(npy_intp t, npy_intp k) const {
    return (t < count ? observations + t * rows * one.bytes : current) + k * one.bytes;
  }

  bool act(npy_intp t, npy_intp in_block) const {
    void* out[HEADS];
    for (int k = 0; k < acting.outputs; k++) out[k] = acting.head[k] + in_block * acting.head_bytes[k];
    if (!run_rows(engine, place(t, 0), out, rows)) return false;
    acting.x.act(in_block);
    return true;
  }

  bool step(npy_intp t, npy_intp in_block, npy_intp k) {
    const auto action = nb::steal<nb::object>(acting.action(in_block, k));
    if (!action.is_valid()) return false;
    const auto made_ = nb::steal<nb::object>(PyObject_CallOneArg(PyList_GET_ITEM(steps, k), action.ptr()));
    if (!made_.is_valid()) return false;
    if (!PyTuple_Check(made_.ptr()) || PyTuple_GET_SIZE(made_.ptr()) != 5) return refuse("the environment's step gave no tuple of five");
    PyObject* const* found = &PyTuple_GET_ITEM(made_.ptr(), 0);
    const npy_intp at = t * rows + k;
    rewards[at] = (float)PyFloat_AsDouble(found[1]);
    const int terminates = PyObject_IsTrue(found[2]), truncates = PyObject_IsTrue(found[3]);
    if (PyErr_Occurred()) return false;
    if (!terminates && !truncates) return one.store(found[0], place(t + 1, k));
    terminated[at] = terminates, truncated[at] = truncates;
    if (left) left[k]--;
    return end(t, k, found[0]);
  }

  bool end(npy_intp t, npy_intp k, PyObject* last) {
    const auto kept = nb::steal<nb::object>(PyArray_SimpleNew(one.n, const_cast<npy_intp*>(one.dims), one.type));
    if (!kept.is_valid() || !one.store(last, static_cast<char*>(PyArray_DATA(reinterpret_cast<PyArrayObject*>(kept.ptr()))))) return false;
    ends.append(nb::make_tuple(t, k, kept));
    const auto begun = nb::steal<nb::object>(PyObject_CallNoArgs(PyList_GET_ITEM(resets, k)));
    if (!begun.is_valid()) return false;
    if (!PyTuple_Check(begun.ptr()) || PyTuple_GET_SIZE(begun.ptr()) != 2) return refuse("the environment's reset gave no tuple of two");
    return one.store(PyTuple_GET_ITEM(begun.ptr(), 0), place(t + 1, k));
  }

  // One step of all: those that have done their episodes rest, without a transition.
  bool all(npy_intp t, npy_intp in_block) {
    if (!act(t, in_block)) return false;
    for (npy_intp k = 0; k < rows; k++) {
      if (left && left[k] <= 0) {
        valid[t * rows + k] = false;
        memcpy(place(t + 1, k), place(t, k), (size_t)one.bytes);
      } else if (!step(t, in_block, k)) return false;
    }
    *made = t + 1;
    return true;
  }
};

// (where it ended, [(step, environment, last observation) of every episode that did]); it ends early where nothing is left to do
std::pair<npy_intp, nb::list> rollout(const Acting& acting, nb::object engine, nb::list steps, nb::list resets, nb::dict columns,
                                      nb::object counters, npy_intp first, npy_intp last) {
  PyArrayObject *observations = array(columns["observations"]), *current = array(columns["current"]);
  Stepping s{acting, engine.ptr(), steps.ptr(), resets.ptr(), Observation(current)};
  s.rows = acting.x.rows, s.count = PyArray_DIM(observations, 0);
  const npy_intp all = s.rows * s.count;
  if (first < 0 || last > s.count || last - first > acting.x.steps || (npy_intp)nb::len(steps) != s.rows || (npy_intp)nb::len(resets) != s.rows ||
      PyArray_SIZE(current) != s.rows * s.one.elements || PyArray_SIZE(observations) != all * s.one.elements || PyArray_TYPE(observations) != s.one.type)
    throw std::runtime_error("columns and environments do not belong together");
  bool fits = row_bytes(engine.ptr(), -1) == s.one.bytes && row_bytes(engine.ptr(), acting.outputs) < 0;
  for (int k = 0; k < acting.outputs; k++) fits = fits && row_bytes(engine.ptr(), k) * s.rows == acting.head_bytes[k];
  if (!fits) throw std::runtime_error("an engine whose input or outputs are not these columns' and heads'");
  s.observations = static_cast<char*>(PyArray_DATA(observations)), s.current = static_cast<char*>(PyArray_DATA(current));
  s.rewards = Acting::need(memory<float>(columns, "rewards", all)), s.valid = Acting::need(memory<bool>(columns, "valid", all));
  s.terminated = Acting::need(memory<bool>(columns, "terminated", all)), s.truncated = Acting::need(memory<bool>(columns, "truncated", all));
  s.left = memory<int64_t>(columns, "left", s.rows);
  PyArrayObject* made = array(counters);
  s.made = static_cast<int64_t*>(PyArray_DATA(made));
  for (npy_intp t = first; t < last; t++) {
    if (s.left && std::none_of(s.left, s.left + s.rows, [](int64_t n) { return n > 0; })) return {t, s.ends};
    if (!s.all(t, t - first)) throw nb::python_error();
  }
  return {last, s.ends};
}

}  // namespace

void bind_rollout(nb::module_& m) {
  nb::class_<Acting>(m, "Explorer", "What explores in arrays that rl/explore.py made.")
      .def(nb::init<int, nb::list, nb::dict, npy_intp, bool>(), "kind"_a, "heads"_a, "arrays"_a, "every"_a, "squash"_a)
      .def("act", &Acting::act, "t"_a, "From the heads of a step of the block to its actions.");
  m.def("rollout", &rollout, "explorer"_a, "engine"_a, "steps"_a, "resets"_a, "columns"_a, "counters"_a, "first"_a, "last"_a,
        "Steps first to last of environments, into columns: (where it ended, what ended).");
}
