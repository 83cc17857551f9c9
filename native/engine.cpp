// Batches through a program.
#include "engine.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>

namespace fewbit {
namespace {

constexpr ptrdiff_t CACHE = 192 << 10;  // bytes of an arena: about half of a small second-level cache, beside the weights
constexpr ptrdiff_t MOST_ROWS = 240;    // a multiple of every instruction set's rows
constexpr ptrdiff_t SLACK = 64;

char* aligned(char* p) { return p + (-reinterpret_cast<uintptr_t>(p) & 63); }

template <class T>
ptrdiff_t first_nan(const T* in, ptrdiff_t n) {
  return std::find_if(in, in + n, [](T v) { return v != v; }) - in;
}

}  // namespace

Engine::Engine(const char* bytes, size_t size, const Kernels& kernels) : program(bytes, size, kernels) {
  block_rows_ = std::clamp<ptrdiff_t>(CACHE / program.row_bytes, 1, MOST_ROWS);
  if (block_rows_ > 12) block_rows_ -= block_rows_ % 12;
  need(block_rows_ * program.row_bytes < ptrdiff_t(1) << 34, "its registers are too large");
  own_ = std::make_unique<char[]>((size_t)(program.row_bytes + SLACK));
}

bool Engine::takes(int input, Type type) const {
  const Type held = program.reg(program.inputs[(size_t)input]).type;
  return type == held || (type == Type::f64 && held == Type::f32);
}

void Engine::block(char* arena, const Source* inputs, void* const* outputs, ptrdiff_t first, ptrdiff_t rows) const {
  const Frame frame{aligned(arena), rows};
  for (size_t k = 0; k < program.inputs.size(); k++) {
    const Register& r = program.reg(program.inputs[k]);
    char* to = program.place(program.inputs[k]).at(frame);
    const ptrdiff_t n = r.inner, size = size_of(inputs[k].type);
    bool bad = false;
    for (ptrdiff_t i = 0; i < rows; i++, to += r.row_bytes()) {
      const char* from = static_cast<const char*>(inputs[k].data) + (first + i) * n * size;
      if (inputs[k].type == Type::f64 && r.type == Type::f32) bad |= program.kernels.load_doubles(reinterpret_cast<const double*>(from), reinterpret_cast<float*>(to), n);
      else if (r.type == Type::f32) bad |= program.kernels.load(reinterpret_cast<const float*>(from), reinterpret_cast<float*>(to), n);
      else {
        memcpy(to, from, (size_t)(n * size));
        if (r.type == Type::f64) bad |= first_nan(reinterpret_cast<const double*>(from), n) != n;
      }
    }
    if (bad) {
      const ptrdiff_t at = inputs[k].type == Type::f64 ? first_nan(static_cast<const double*>(inputs[k].data) + first * n, rows * n)
                                                       : first_nan(static_cast<const float*>(inputs[k].data) + first * n, rows * n);
      throw Nan((int)k, first * n + at);
    }
  }
  for (const Step& step : program.steps) step(frame);
  for (size_t k = 0; k < program.outputs.size(); k++) {
    const Register& r = program.reg(program.outputs[k]);
    const char* from = program.place(program.outputs[k]).at(frame);
    const size_t size = (size_t)size_of(r.type), vector = (size_t)r.inner * size;
    char* to = static_cast<char*>(outputs[k]) + (size_t)(first * r.count) * vector;
    for (ptrdiff_t i = 0; i < rows * r.count; i++) {
      const ptrdiff_t vectors = r.constant ? i % r.count : i;
      memcpy(to + (size_t)i * vector, from + (size_t)(vectors * r.stride) * size, vector);
    }
  }
}

void Engine::one(const Source* inputs, void* const* outputs) { block(own_.get(), inputs, outputs, 0, 1); }

Engine::Arena Engine::take() {
  {
    const std::lock_guard<std::mutex> hold(lock_);
    if (!idle_.empty()) {
      Arena a = std::move(idle_.back());
      idle_.pop_back();
      return a;
    }
  }
  return std::make_unique<char[]>((size_t)(program.row_bytes * block_rows_ + SLACK));
}

void Engine::give(Arena a) {
  const std::lock_guard<std::mutex> hold(lock_);
  idle_.push_back(std::move(a));
}

void Engine::many(const Source* inputs, void* const* outputs, ptrdiff_t rows, int threads) {
  std::atomic<ptrdiff_t> next{0};
  std::exception_ptr failed;
  std::mutex failing;
  const auto work = [&] {
    try {
      Arena arena = take();
      for (ptrdiff_t first; (first = next.fetch_add(block_rows_)) < rows;)
        block(arena.get(), inputs, outputs, first, std::min(block_rows_, rows - first));
      give(std::move(arena));
    } catch (...) {
      const std::lock_guard<std::mutex> hold(failing);
      failed = std::current_exception();
    }
  };
  const ptrdiff_t useful = (rows + block_rows_ - 1) / block_rows_;
  std::vector<std::thread> others;
  try {
    for (ptrdiff_t i = 1; i < std::min<ptrdiff_t>(threads, useful); i++) others.emplace_back(work);
  } catch (const std::exception&) {  // the system gives no more threads: those that there are do it
  }
  work();
  for (auto& t : others) t.join();
  if (failed) std::rethrow_exception(failed);
}

}  // namespace fewbit
