// Runs a program over batches: rows in blocks that fit the cache, arenas reused, threads if asked for.
#pragma once
#include <mutex>

#include "program.h"

namespace fewbit {

struct Source {  // a batch of observations, C-contiguous
  const void* data;
  Type type;
};

struct Nan : std::runtime_error {
  Nan(int input_, ptrdiff_t index_) : std::runtime_error("NaN"), input(input_), index(index_) {}
  int input;
  ptrdiff_t index;  // in the batch, flattened
};

class Engine {
 public:
  Engine(const char* bytes, size_t size, const Kernels& kernels);

  const Program program;
  bool takes(int input, Type type) const;  // what a register holds, or float64 for float32

  // One row, in the engine's own arena: the caller lets nobody else in.
  void one(const Source* inputs, void* const* outputs);
  // Any number of rows, from any number of callers at once.
  void many(const Source* inputs, void* const* outputs, ptrdiff_t rows, int threads);

 private:
  using Arena = std::unique_ptr<char[]>;
  void block(char* arena, const Source* inputs, void* const* outputs, ptrdiff_t first, ptrdiff_t rows) const;
  Arena take();
  void give(Arena a);

  ptrdiff_t block_rows_;
  Arena own_;
  std::mutex lock_;
  std::vector<Arena> idle_;
};

}  // namespace fewbit
