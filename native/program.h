// A flat program: registers and steps, read from bytes and checked, bound to one instruction set's kernels.
//
// The bytes (written by fewbit/engine/native.py): int64 words in little-endian order, then data.
//   magic, number of words, words, data bytes
//   words: registers (count; each: type, count, inner, constant's data offset or -1), inputs (count; registers),
//          outputs (count; registers), steps (count; each: operation, number of arguments, arguments)
//   an array among the arguments is two words: its offset in the data and its number of elements
// A register is `count` vectors of `inner` elements a row of the batch, each vector padded to a multiple of 16.
#pragma once
#include <algorithm>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"

namespace fewbit {

struct Bad : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Register {
  Type type = Type::f32;
  int count = 1, inner = 1, stride = 0;
  bool constant = false;
  ptrdiff_t offset = 0;        // bytes before it in the arena, for one row
  std::vector<char> held;      // a constant's content
  ptrdiff_t elements() const { return (ptrdiff_t)count * stride; }  // of a row, padding included
  ptrdiff_t row_bytes() const { return elements() * size_of(type); }
};

// Where a step runs: an arena laid out for `rows` rows.
struct Frame {
  char* base;
  ptrdiff_t rows;
};

// Where a register lies in a frame.
struct Place {
  ptrdiff_t offset;
  const char* held;
  char* at(const Frame& f) const { return held ? const_cast<char*>(held) : f.base + offset * f.rows; }
};

using Step = std::function<void(const Frame&)>;

class Program {
 public:
  Program(const char* bytes, size_t size, const Kernels& kernels);

  const Kernels& kernels;
  std::vector<int> inputs, outputs;
  std::vector<Step> steps;
  ptrdiff_t row_bytes = 0;  // of all registers

  const Register& reg(int i) const { return *registers_[(size_t)i]; }
  Place place(int i) const { return {reg(i).offset, reg(i).constant ? reg(i).held.data() : nullptr}; }
  int scratch(Type type, int like);  // one more register, of another's layout

 private:
  std::vector<std::unique_ptr<Register>> registers_;
  int add(Register r);
};

// The arguments of one step, each checked as it is read.
class Arguments {
 public:
  Arguments(const std::vector<int64_t>& words, size_t begin, size_t end, const std::vector<char>& data, int registers)
      : words_(words), at_(begin), end_(end), data_(data), registers_(registers) {}
  int64_t integer(int64_t low, int64_t high);
  int reg() {
    read_.push_back((int)integer(0, registers_ - 1));
    return read_.back();
  }
  int writes() const { return read_.back(); }  // every step names the register that it writes last
  bool apart() const { return std::count(read_.begin(), read_.end(), read_.back()) == 1; }
  template <class T>
  std::vector<T> array(int64_t expected = -1);
  template <class T>
  T scalar() { return array<T>(1)[0]; }
  bool done() const { return at_ == end_; }
  size_t position() const { return at_; }
  void skip(size_t n) { at_ += n; }

 private:
  const std::vector<int64_t>& words_;
  size_t at_, end_;
  const std::vector<char>& data_;
  int registers_;
  std::vector<int> read_;
};

Step make_step(int64_t operation, Arguments& a, Program& p);  // steps.cpp
Step make_linear(Arguments& a, Program& p);                   // linear_step.cpp
Step make_linear_floats(Arguments& a, Program& p);

void need(bool condition, const char* what);

}  // namespace fewbit
