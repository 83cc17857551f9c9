// int4 weights in a batch-1 layer: unpacked in registers at every call, or once at load? ns of a square layer, median of rounds.
//   g++ -O3 -march=native unpack.cpp -o unpack && ./unpack
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <vector>

#if defined(__AVX512VNNI__)
using V = __m512i;
constexpr int LANES = 16;
static V load(const void* p) { return _mm512_loadu_si512(p); }
static V spread(int v) { return _mm512_set1_epi32(v); }
static V dot(V s, V x, V w) { return _mm512_dpbusd_epi32(s, x, w); }
static V high(V w) { return _mm512_and_si512(w, _mm512_set1_epi8((char)0xF0)); }
static V low(V w) { return high(_mm512_slli_epi16(w, 4)); }
static void store(void* p, V s) { _mm512_storeu_si512(p, s); }
#else
using V = __m256i;
constexpr int LANES = 8;
static V load(const void* p) { return _mm256_loadu_si256((const V*)p); }
static V spread(int v) { return _mm256_set1_epi32(v); }
static V dot(V s, V x, V w) { return _mm256_add_epi32(s, _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), _mm256_set1_epi16(1))); }
static V high(V w) { return _mm256_and_si256(w, _mm256_set1_epi8((char)0xF0)); }
static V low(V w) { return high(_mm256_slli_epi16(w, 4)); }
static void store(void* p, V s) { _mm256_storeu_si256((V*)p, s); }
#endif

// Four vectors of outputs at once. PACKED: a vector holds two steps of k, the low nibbles the first; sums come out 16 times
// too large, exactly (a nibble in the upper half of a byte), and one shift at the end puts that right.
template <bool PACKED>
__attribute__((noinline)) void layer(const char* w, const char* x, int32_t* y, int n) {
  constexpr int BYTES = LANES * 4;
  const int k = n / 4, panel = (PACKED ? k / 2 : k) * 4 * BYTES;
  for (int o = 0; o < n; o += 4 * LANES, w += panel) {
    V sum[4][2] = {};
    for (int i = 0; i < k; i += 2) {
      const V a = spread(*(const int32_t*)(x + 4 * i)), b = spread(*(const int32_t*)(x + 4 * i + 4));
#pragma GCC unroll 4
      for (int c = 0; c < 4; c++) {
        if constexpr (PACKED) {
          const V both = load(w + (i / 2 * 4 + c) * BYTES);
          sum[c][0] = dot(sum[c][0], a, low(both));
          sum[c][1] = dot(sum[c][1], b, high(both));
        } else {
          sum[c][0] = dot(sum[c][0], a, load(w + (i * 4 + c) * BYTES));
          sum[c][1] = dot(sum[c][1], b, load(w + ((i + 1) * 4 + c) * BYTES));
        }
      }
    }
    for (int c = 0; c < 4; c++)
      for (int d = 0; d < 2; d++) store(y + o * 2 + (c * 2 + d) * LANES, sum[c][d]);
  }
}

int main() {
  for (int n : {64, 256, 512, 1024, 2048, 4096}) {
    std::vector<char> w((size_t)n * n, 1), x((size_t)n, 3);
    std::vector<int32_t> y((size_t)n * 2);
    std::vector<double> times[2];
    const int calls = std::max(1, 20000000 / (n * n));
    for (int round = 0; round < 60; round++)
      for (int packed = 0; packed < 2; packed++) {
        const auto start = std::chrono::steady_clock::now();
        for (int c = 0; c < calls; c++) packed ? layer<true>(w.data(), x.data(), y.data(), n) : layer<false>(w.data(), x.data(), y.data(), n);
        const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - start;
        times[packed].push_back(took.count() / calls);
      }
    for (auto& t : times) std::sort(t.begin(), t.end());
    printf("%4d x %-4d  at load %10.0f ns   in registers %10.0f ns\n", n, n, times[0][30], times[1][30]);
  }
}
