// Reads and checks a program's bytes.
#include "program.h"

#include <cstring>

namespace fewbit {

constexpr int64_t MAGIC_WORD = 0x3130544942574546;  // "FEWBIT01"
constexpr int64_t LARGEST_ROW = int64_t(1) << 28;     // bytes of one register's row: no policy comes near

void need(bool condition, const char* what) {
  if (!condition) throw Bad(std::string("damaged program: ") + what);
}

int64_t Arguments::integer(int64_t low, int64_t high) {
  need(at_ < end_, "a step has too few arguments");
  const int64_t v = words_[at_++];
  need(v >= low && v <= high, "an argument is out of range");
  return v;
}

template <class T>
std::vector<T> Arguments::array(int64_t expected) {
  const auto size = (int64_t)data_.size();
  const int64_t offset = integer(0, size), count = integer(0, (size - offset) / (int64_t)sizeof(T));
  need(expected < 0 || count == expected, "an array has the wrong length");
  std::vector<T> v((size_t)count);
  if (count) memcpy(v.data(), data_.data() + offset, (size_t)count * sizeof(T));
  return v;
}
template std::vector<char> Arguments::array(int64_t);
template std::vector<uint8_t> Arguments::array(int64_t);
template std::vector<int16_t> Arguments::array(int64_t);
template std::vector<int32_t> Arguments::array(int64_t);
template std::vector<int64_t> Arguments::array(int64_t);
template std::vector<float> Arguments::array(int64_t);

int Program::add(Register r) {
  r.stride = (r.inner + BLOCK - 1) / BLOCK * BLOCK;
  need(r.row_bytes() <= LARGEST_ROW, "a register is too large");
  if (!r.constant) {
    r.offset = row_bytes;
    row_bytes += (r.row_bytes() + 63) / 64 * 64;
  }
  registers_.push_back(std::make_unique<Register>(std::move(r)));
  return (int)registers_.size() - 1;
}

int Program::scratch(Type type, int like) {
  Register r;
  r.type = type, r.count = reg(like).count, r.inner = reg(like).inner;
  return add(r);
}

Program::Program(const char* bytes, size_t size, const Kernels& k) : kernels(k) {
  int64_t head[2] = {};
  need(size >= sizeof head, "it is too short");
  memcpy(head, bytes, sizeof head);
  need(head[0] == MAGIC_WORD, "it does not start as one");
  need(head[1] >= 0 && (uint64_t)head[1] <= (size - sizeof head) / 8, "it is too short");
  std::vector<int64_t> words((size_t)head[1]);
  const char* after = bytes + sizeof head + words.size() * 8;
  if (!words.empty()) memcpy(words.data(), bytes + sizeof head, words.size() * 8);
  const std::vector<char> data(after, bytes + size);

  Arguments all(words, 0, words.size(), data, 0);
  const auto limit = (int64_t)words.size();
  const int64_t n = all.integer(1, limit);
  for (int64_t i = 0; i < n; i++) {
    Register r;
    r.type = (Type)all.integer(0, (int64_t)Type::f64);
    r.count = (int)all.integer(1, LARGEST_ROW), r.inner = (int)all.integer(1, LARGEST_ROW);
    need((int64_t)r.count * (r.inner + BLOCK) <= LARGEST_ROW, "a register is too large");
    const int64_t from = all.integer(-1, (int64_t)data.size());
    r.constant = from >= 0;
    const int id = add(std::move(r));
    if (from < 0) continue;
    Register& made = *registers_[(size_t)id];
    const size_t length = (size_t)made.row_bytes();
    need(length <= data.size() - (size_t)from, "a constant is cut short");
    made.held.assign(data.begin() + from, data.begin() + from + (ptrdiff_t)length);
  }
  const auto list = [&](std::vector<int>& to) {
    const int64_t count = all.integer(1, limit);
    for (int64_t i = 0; i < count; i++) to.push_back((int)all.integer(0, n - 1));
  };
  list(inputs), list(outputs);
  for (int i : inputs) need(!reg(i).constant && reg(i).count == 1, "an input is a constant");
  const int64_t count = all.integer(0, limit);
  size_t at = 0;
  for (int64_t i = 0; i < count; i++) {
    const int64_t operation = all.integer(0, 64), arguments = all.integer(0, limit);
    at = all.position();
    need((size_t)arguments <= words.size() - at, "a step is cut short");
    Arguments mine(words, at, at + (size_t)arguments, data, (int)n);
    steps.push_back(make_step(operation, mine, *this));
    need(mine.done(), "a step has too many arguments");
    need(mine.apart() && !reg(mine.writes()).constant, "a step writes what it reads, or a constant");
    all.skip((size_t)arguments);
  }
}

}  // namespace fewbit
