// Runs files of cases without Python, for emulators, sanitizers and fuzzing: runner FILE [--fuzz SEED ROUNDS], or
// runner --grouped SEED CASES.
//
// A file: int64 count of cases, then of each: its program, rows, the inputs (count; type and bytes), the expected outputs
// (count; bytes); bytes are an int64 length and content. Every instruction set of this CPU must give every byte.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>

#include "dispatch.h"
#include "engine.h"

namespace {

using Bytes = std::vector<char>;

struct Case {
  Bytes program;
  int64_t rows;
  std::vector<std::pair<fewbit::Type, Bytes>> inputs;
  std::vector<Bytes> outputs;
};

std::vector<Case> read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  const Bytes all((std::istreambuf_iterator<char>(file)), {});
  size_t at = 0;
  const auto word = [&] {
    int64_t v;
    memcpy(&v, all.data() + at, 8), at += 8;
    return v;
  };
  const auto bytes = [&] {
    const auto n = (size_t)word();
    at += n;
    return Bytes(all.begin() + (ptrdiff_t)(at - n), all.begin() + (ptrdiff_t)at);
  };
  std::vector<Case> cases((size_t)word());
  for (Case& c : cases) {
    c.program = bytes(), c.rows = word();
    c.inputs.resize((size_t)word());
    for (auto& [type, content] : c.inputs) type = (fewbit::Type)word(), content = bytes();
    c.outputs.resize((size_t)word());
    for (auto& o : c.outputs) o = bytes();
  }
  return cases;
}

// The outputs, or nothing where the program is refused.
std::vector<Bytes> run(const Case& c, const Bytes& program, const fewbit::Kernels& k, bool one_by_one) {
  fewbit::Engine engine(program.data(), program.size(), k);
  const auto& p = engine.program;
  fewbit::need(p.inputs.size() == c.inputs.size(), "another number of inputs");
  std::vector<fewbit::Source> in;
  for (size_t i = 0; i < c.inputs.size(); i++) {
    fewbit::need(engine.takes((int)i, c.inputs[i].first), "another type of input");
    const auto need = (size_t)(c.rows * p.reg(p.inputs[i]).inner) * (size_t)fewbit::size_of(c.inputs[i].first);
    fewbit::need(need == c.inputs[i].second.size(), "another size of input");
    in.push_back({c.inputs[i].second.data(), c.inputs[i].first});
  }
  std::vector<Bytes> out;
  std::vector<size_t> row;
  for (int o : p.outputs) {
    row.push_back((size_t)(p.reg(o).count * p.reg(o).inner) * (size_t)fewbit::size_of(p.reg(o).type));
    fewbit::need(row.back() < size_t(1) << 24, "a large output");
    out.emplace_back(row.back() * (size_t)c.rows);
  }
  std::vector<void*> to(out.size());
  for (int64_t r = 0; r < (one_by_one ? c.rows : 1); r++) {
    for (size_t i = 0; i < out.size(); i++) to[i] = out[i].data() + (size_t)r * row[i];
    std::vector<fewbit::Source> from = in;
    for (size_t i = 0; i < in.size(); i++)
      from[i].data = static_cast<const char*>(in[i].data) + r * p.reg(p.inputs[i]).inner * fewbit::size_of(in[i].type);
    if (one_by_one) engine.one(from.data(), to.data());
    else engine.many(in.data(), to.data(), c.rows, 2);
  }
  return out;
}

int check(const std::vector<Case>& cases) {
  int bad = 0;
  for (const fewbit::Kernels* k : fewbit::available()) {
    int differ = 0;
    for (const Case& c : cases)
      for (bool one_by_one : {false, true}) differ += run(c, c.program, *k, one_by_one) != c.outputs;
    printf("%s: %zu cases, %d differ\n", k->name, cases.size(), differ);
    bad += differ;
  }
  return bad ? 1 : 0;
}

int fuzz(const std::vector<Case>& cases, unsigned seed, int rounds) {
  std::mt19937_64 random(seed);
  long refused = 0, ran = 0;
  for (int i = 0; i < rounds; i++) {
    const Case& c = cases[random() % cases.size()];
    Bytes program = c.program;
    if (i % 4 == 0) program.resize(random() % program.size());
    else
      for (uint64_t n = 1 + random() % 3; n--;) {
        const size_t words = program.size() / 8, at = 8 * (random() % words);
        uint64_t v;
        memcpy(&v, &program[at], 8);
        const uint64_t choices[] = {0, ~0ull, v + 1, v - 1, v * 2, -v, INT64_MAX, 1ull << 63, 1 << 30, random() % 300, random()};
        v = choices[random() % std::size(choices)];
        memcpy(&program[at], &v, 8);
      }
    try {
      run(c, program, *fewbit::available()[(size_t)i % fewbit::available().size()], i % 2);
      ran++;
    } catch (const std::runtime_error&) {
      refused++;
    }
  }
  printf("fuzzed: %ld ran, %ld refused\n", ran, refused);
  return 0;
}

}  // namespace

int check_grouped(unsigned seed, int cases);  // runner_grouped.cpp

int main(int argc, char** argv) {
  if (argc == 4 && !strcmp(argv[1], "--grouped")) return check_grouped((unsigned)atoi(argv[2]), atoi(argv[3]));
  if (argc != 2 && argc != 5) return fprintf(stderr, "runner FILE [--fuzz SEED ROUNDS]\n"), 2;
  const auto cases = read(argv[1]);
  return argc == 2 ? check(cases) : fuzz(cases, (unsigned)atoi(argv[3]), atoi(argv[4]));
}
