// One grouped weight as Python holds it: panels of memory that the caller owns, and the instruction set that runs it.
#pragma once
#include <string>

#include "kernels.h"

namespace fewbit {

// What a weight is; held: the bits it is held in, which are more where 3 or 2 do not divide its groups into chunks.
struct GroupedShape {
  int out, in, bits, group_size;
  bool zero, bias;
  int held() const;
  int blocks() const { return (out + 15) / 16; }
  int groups() const { return in / group_size; }
  void check() const;  // throws std::runtime_error
  struct Places { size_t scale, zero, bias, end; };
  Places places() const;  // bytes into the panels; the codes lie first
};

class GroupedWeight {
 public:
  GroupedWeight(const GroupedShape& shape, uint8_t* panels, const Kernels& kernels);

  // From rows of packed codes (low bits first, a row on whole bytes), float16 scales, zero points (or null), bias (or null).
  void fill(const uint8_t* codes, const uint16_t* scale, const uint8_t* zero, const float* bias);
  // y [rows][out] = x [rows][in] by the weight; floats: x stays float32.
  void run(const float* x, float* y, ptrdiff_t rows, bool floats, int threads) const;
  // Rows of the weight as float32 [n][in].
  void rows(const int64_t* which, ptrdiff_t n, float* y) const;

  const GroupedShape shape;
  const Kernels& kernels;

 private:
  Grouped w_;
};

}  // namespace fewbit
