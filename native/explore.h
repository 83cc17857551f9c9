// What exploration makes of a network's heads, for all environments at one step. rl/explore.py has the formulas: it owns the
// memory, draws the noise of a block of steps and finds the log-probabilities.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace fewbit {

struct Explorer {
  enum Kind { deterministic, gaussian, squashed, categorical, epsilon, gsde } kind;  // in the order of HEADS in rl/explore.py
  ptrdiff_t steps, rows, width, features, every;  // width: of an action, or of logits and values; every: steps of a gsde matrix
  bool squash;
  const float *head, *second;  // [steps][rows][width]; of squashed and gsde another, [steps][rows][width or features]
  const float* noise;          // as head, times std if that is known; of gsde [draws][rows][features][width]
  const double* draws;         // Gumbel noise as head, or a coin each [steps][rows]
  const double* epsilons;      // [steps]
  const int64_t* others;       // [steps][rows], what is taken instead of the best
  const float *low, *high;     // [width]
  float *before, *actions;     // [steps][rows][width], the same memory where nothing is squashed
  float* bounded;              // [rows][width], what environments take; null where that is the actions themselves
  int64_t* numbers;            // [steps][rows], actions that are numbers

  void act(ptrdiff_t t) const {
    if (kind == categorical || kind == epsilon) return choose(t);
    if (kind == deterministic) return;
    const ptrdiff_t first = t * rows * width;
    const float *mean = head + first, *drawn = noise + first;
    float* u = before + first;
    if (kind == gsde) combine(t, mean, u);
    else
      for (ptrdiff_t i = 0; i < rows * width; i++) u[i] = mean[i] + (kind == squashed ? std::exp(second[first + i]) * drawn[i] : drawn[i]);
    bound(u, actions + first);
  }

 private:
  // mean + features @ matrix, a matrix for every environment
  void combine(ptrdiff_t t, const float* mean, float* u) const {
    const float* matrix = noise + (every ? t / every : 0) * rows * features * width;
    const float* given = second + t * rows * features;
    for (ptrdiff_t r = 0; r < rows; r++, mean += width, u += width) {
      std::copy_n(mean, width, u);
      for (ptrdiff_t f = 0; f < features; f++, given++, matrix += width)
        for (ptrdiff_t i = 0; i < width; i++) u[i] += *given * matrix[i];
    }
  }

  void bound(const float* u, float* action) const {
    for (ptrdiff_t r = 0, at = 0; r < rows; r++)
      for (ptrdiff_t i = 0; i < width; i++, at++) {
        if (squash) action[at] = std::tanh(u[at]);
        if (!bounded) continue;
        bounded[at] = squash ? low[i] + (action[at] + 1.0f) * (0.5f * (high[i] - low[i])) : std::clamp(action[at], low[i], high[i]);
      }
  }

  void choose(ptrdiff_t t) const {
    for (ptrdiff_t r = t * rows; r < (t + 1) * rows; r++) {
      const float* value = head + r * width;
      const double* gumbel = kind == categorical ? draws + r * width : nullptr;
      const auto height = [&](ptrdiff_t i) { return (double)value[i] + (gumbel ? gumbel[i] : 0.0); };
      ptrdiff_t best = 0;
      for (ptrdiff_t i = 1; i < width; i++)
        if (height(i) > height(best)) best = i;  // the first of equals
      numbers[r] = kind == epsilon && draws[r] < epsilons[t] ? others[r] : best;
    }
  }
};

}  // namespace fewbit
