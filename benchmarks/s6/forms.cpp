// Speed of the forms of S6: int16 codes in, int16 codes out. Each variant is first compared with NumPy's outputs on all 65536
// codes (the float forms, which have none, with each other).
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#define AVX2 __attribute__((target("avx2"), noinline))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2"), noinline))
#define IN2 __attribute__((target("avx2"), always_inline)) static inline
#define IN5 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2"), always_inline)) static inline
#define SCALAR __attribute__((noinline, optimize("no-tree-vectorize")))

struct alignas(64) Table {
    int16_t c[6][64];         // [power][segment]
    uint8_t plane[6][2][4][32];  // [power][low or high byte][16 segments][the same 16 bytes twice]
    int guard;
};
static std::vector<int32_t> pairs;     // form A: (t[i], t[i + 1] - t[i])
static std::vector<int32_t> segments;  // 2048 x 1: (c0, c1)
static int segments_guard;

static inline int clamp16(int v) { return v > 32767 ? 32767 : v < -32768 ? -32768 : v; }
static inline int mulhrs(int a, int b) { return (a * b + 16384) >> 15; }

// ---- plain C
SCALAR void table_c(const int16_t* x, int16_t* y, int n) {
    for (int j = 0; j < n; j++) {
        int u = x[j] + 32768, p = pairs[u >> 5];
        y[j] = (int16_t)clamp16(((int16_t)p * 32 + (p >> 16) * (u & 31) + 16) >> 5);
    }
}
SCALAR void linear_c(const int16_t* x, int16_t* y, int n) {
    for (int j = 0; j < n; j++) {
        int u = x[j] + 32768, p = segments[u >> 5], f = (int16_t)((u << 11) ^ 0x8000);
        y[j] = (int16_t)clamp16((int16_t)p + mulhrs(p >> 16, f >> segments_guard));
    }
}
template <int BITS, int D>
SCALAR void poly_c(const Table& t, const int16_t* x, int16_t* y, int n) {
    for (int j = 0; j < n; j++) {
        unsigned u = (unsigned)(x[j] + 32768), i = u >> BITS;
        int f = (int16_t)((u << (16 - BITS)) ^ 0x8000), h = t.c[D][i];
        for (int k = D - 1; k > 0; k--) h = t.c[k][i] + mulhrs(h, f);
        y[j] = (int16_t)clamp16(t.c[0][i] + mulhrs(h, f >> t.guard));
    }
}

// ---- AVX2
template <bool POLY>
AVX2 void gather_avx2(const int16_t* x, int16_t* y, int n) {
    const int32_t* from = POLY ? segments.data() : pairs.data();
    const __m256i half = _mm256_set1_epi32(POLY ? 16384 : 16), k32 = _mm256_set1_epi32(32), m31 = _mm256_set1_epi32(31);
    const __m128i guard = _mm_cvtsi32_si128(segments_guard);
    for (int j = 0; j < n; j += 16) {
        __m256i r[2];
        for (int k = 0; k < 2; k++) {
            __m256i u = _mm256_cvtepu16_epi32(
                _mm_xor_si128(_mm_loadu_si128((const __m128i*)(x + j + 8 * k)), _mm_set1_epi16(-32768)));
            __m256i all = _mm256_set1_epi32(-1);
            asm("" : "+x"(all));  // or the compiler drops the zeros, and each gather waits for the one before
            __m256i p = _mm256_mask_i32gather_epi32(_mm256_setzero_si256(), from, _mm256_srli_epi32(u, 5), all, 4);
            __m256i f = _mm256_and_si256(u, m31);
            if constexpr (POLY) {
                f = _mm256_sra_epi32(_mm256_sub_epi32(_mm256_slli_epi32(f, 11), _mm256_set1_epi32(32768)), guard);
                __m256i z = _mm256_madd_epi16(p, _mm256_slli_epi32(f, 16));  // c1 f
                z = _mm256_srai_epi32(_mm256_add_epi32(z, half), 15);
                r[k] = _mm256_add_epi32(z, _mm256_srai_epi32(_mm256_slli_epi32(p, 16), 16));
            } else {
                __m256i w = _mm256_or_si256(k32, _mm256_slli_epi32(f, 16));
                r[k] = _mm256_srai_epi32(_mm256_add_epi32(_mm256_madd_epi16(p, w), half), 5);
            }
        }
        _mm256_storeu_si256((__m256i*)(y + j), _mm256_permute4x64_epi64(_mm256_packs_epi32(r[0], r[1]), 0xD8));
    }
}

// 32 codes at a time; the bytes of a coefficient come from 16-entry shuffles, an index with bit 7 set gives 0
template <int BITS, int D, bool ODD>
AVX2 void poly_avx2(const Table& t, const int16_t* x, int16_t* y, int n) {
    constexpr int PARTS = ODD ? 1 : 4096 >> BITS;  // 16-entry tables a byte
    const __m256i sign = _mm256_set1_epi16(-32768);
    const __m128i guard = _mm_cvtsi32_si128(t.guard);
    for (int j = 0; j < n; j += 32) {
        __m256i f[2], s[2], h[2], lo, hi, in[2], at[4];
        for (int k = 0; k < 2; k++) {
            in[k] = _mm256_loadu_si256((const __m256i*)(x + j + 16 * k));
            __m256i u = ODD ? _mm256_max_epi16(in[k], _mm256_subs_epi16(_mm256_setzero_si256(), in[k]))
                            : _mm256_xor_si256(in[k], sign);
            f[k] = _mm256_xor_si256(_mm256_slli_epi16(u, 16 - BITS), sign);
            s[k] = _mm256_sra_epi16(f[k], guard);
            h[k] = _mm256_srli_epi16(u, BITS);
        }
        __m256i i = _mm256_packus_epi16(h[0], h[1]);
        if constexpr (PARTS == 1) at[0] = i;
        else if constexpr (PARTS == 2) {
            at[0] = _mm256_add_epi8(i, _mm256_set1_epi8(0x70)), at[1] = _mm256_sub_epi8(i, _mm256_set1_epi8(16));
        } else {
            for (int p = 0; p < PARTS; p++)
                at[p] = _mm256_adds_epu8(_mm256_sub_epi8(i, _mm256_set1_epi8((char)(16 * p))), _mm256_set1_epi8(0x70));
        }
        for (int k = D; k >= 0; k--) {
            const __m256i* a = (const __m256i*)t.plane[k][0];
            const __m256i* b = (const __m256i*)t.plane[k][1];
            lo = _mm256_shuffle_epi8(a[0], at[0]), hi = _mm256_shuffle_epi8(b[0], at[0]);
            for (int p = 1; p < PARTS; p++) {
                lo = _mm256_or_si256(lo, _mm256_shuffle_epi8(a[p], at[p]));
                hi = _mm256_or_si256(hi, _mm256_shuffle_epi8(b[p], at[p]));
            }
            __m256i c[2] = {_mm256_unpacklo_epi8(lo, hi), _mm256_unpackhi_epi8(lo, hi)};
            for (int v = 0; v < 2; v++)
                h[v] = k == D ? c[v]
                     : k > 0  ? _mm256_add_epi16(c[v], _mm256_mulhrs_epi16(h[v], f[v]))
                              : _mm256_adds_epi16(c[v], _mm256_mulhrs_epi16(h[v], s[v]));
        }
        for (int k = 0; k < 2; k++)
            _mm256_storeu_si256((__m256i*)(y + j + 16 * k), ODD ? _mm256_sign_epi16(h[k], in[k]) : h[k]);
    }
}

// ---- AVX-512BW
template <bool POLY>
AVX512 void gather_avx512(const int16_t* x, int16_t* y, int n) {
    const int32_t* from = POLY ? segments.data() : pairs.data();
    const __m512i half = _mm512_set1_epi32(POLY ? 16384 : 16), k32 = _mm512_set1_epi32(32), m31 = _mm512_set1_epi32(31);
    const __m128i guard = _mm_cvtsi32_si128(segments_guard);
    for (int j = 0; j < n; j += 16) {
        __m512i u = _mm512_cvtepu16_epi32(
            _mm256_xor_si256(_mm256_loadu_si256((const __m256i*)(x + j)), _mm256_set1_epi16(-32768)));
        __mmask16 all = 0xFFFF;
        asm("" : "+Yk"(all));
        __m512i p = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), all, _mm512_srli_epi32(u, 5), from, 4);
        __m512i f = _mm512_and_si512(u, m31), r;
        if constexpr (POLY) {
            f = _mm512_sra_epi32(_mm512_sub_epi32(_mm512_slli_epi32(f, 11), _mm512_set1_epi32(32768)), guard);
            __m512i z = _mm512_madd_epi16(p, _mm512_slli_epi32(f, 16));
            z = _mm512_srai_epi32(_mm512_add_epi32(z, half), 15);
            r = _mm512_add_epi32(z, _mm512_srai_epi32(_mm512_slli_epi32(p, 16), 16));
        } else {
            __m512i w = _mm512_or_si512(k32, _mm512_slli_epi32(f, 16));
            r = _mm512_srai_epi32(_mm512_add_epi32(_mm512_madd_epi16(p, w), half), 5);
        }
        _mm256_storeu_si256((__m256i*)(y + j), _mm512_cvtsepi32_epi16(r));
    }
}
template <int BITS, int D>
AVX512 void poly_avx512(const Table& t, const int16_t* x, int16_t* y, int n) {
    constexpr bool TWO = BITS == 10;
    const __m512i sign = _mm512_set1_epi16(-32768);
    const __m128i guard = _mm_cvtsi32_si128(t.guard);
    __m512i c[D + 1][TWO ? 2 : 1];
    for (int k = 0; k <= D; k++)
        for (int p = 0; p < (TWO ? 2 : 1); p++) c[k][p] = _mm512_load_si512(t.c[k] + 32 * p);
    for (int j = 0; j < n; j += 32) {
        __m512i u = _mm512_xor_si512(_mm512_loadu_si512(x + j), sign), i = _mm512_srli_epi16(u, BITS), h, z;
        __m512i f = _mm512_xor_si512(_mm512_slli_epi16(u, 16 - BITS), sign), s = _mm512_sra_epi16(f, guard);
        for (int k = D; k >= 0; k--) {
            if constexpr (TWO) z = _mm512_permutex2var_epi16(c[k][0], i, c[k][1]);
            else z = _mm512_permutexvar_epi16(i, c[k][0]);
            h = k == D ? z
              : k > 0  ? _mm512_add_epi16(z, _mm512_mulhrs_epi16(h, f))
                       : _mm512_adds_epi16(z, _mm512_mulhrs_epi16(h, s));
        }
        _mm512_storeu_si512(y + j, h);
    }
}

// ---- form C: float32, no FMA. tanh as a rational function (degrees 13 and 6); SiLU as x / (1 + exp(-x)).
static const float P[7] = {4.89352455891786e-03f, 6.37261928875436e-04f, 1.48572235717979e-05f, 5.12229709037114e-08f,
                           -8.60467152213735e-11f, 2.00018790482477e-13f, -2.76076847742355e-16f};
static const float Q[4] = {4.89352518554385e-03f, 2.26843463243900e-03f, 1.18534705686654e-04f, 1.19825839466702e-06f};
static const float E[6] = {5.0000001201e-1f, 1.6666665459e-1f, 4.1665795894e-2f, 8.3334519073e-3f, 1.3981999507e-3f,
                           1.9875691500e-4f};

#define FLOAT_FORM(IN, V, W, N, PRE, SET, TOI, FROMI, ISET, CASTF)                                                   \
    IN W silu_##N(V v, V out) {                                                                                     \
        V m = PRE##sub_ps(SET(0.0f), v);                                                                            \
        m = PRE##min_ps(PRE##max_ps(m, SET(-87.0f)), SET(87.0f));                                                   \
        W k = TOI(PRE##mul_ps(m, SET(1.44269504f)));                                                                \
        V kf = FROMI(k);                                                                                            \
        V r = PRE##sub_ps(PRE##sub_ps(m, PRE##mul_ps(kf, SET(0.693359375f))), PRE##mul_ps(kf, SET(-2.12194440e-4f)));\
        V p = SET(E[5]);                                                                                            \
        for (int i = 4; i >= 0; i--) p = PRE##add_ps(PRE##mul_ps(p, r), SET(E[i]));                                 \
        p = PRE##add_ps(PRE##add_ps(PRE##mul_ps(PRE##mul_ps(p, r), r), r), SET(1.0f));                              \
        p = PRE##mul_ps(p, CASTF(PRE##slli_epi32(PRE##add_epi32(k, ISET(127)), 23)));                               \
        return TOI(PRE##mul_ps(PRE##div_ps(v, PRE##add_ps(SET(1.0f), p)), out));                                    \
    }                                                                                                               \
    IN W tanh_##N(V v, V out) {                                                                                     \
        v = PRE##min_ps(PRE##max_ps(v, SET(-7.9053111f)), SET(7.9053111f));                                         \
        V q = PRE##mul_ps(v, v), p = SET(P[6]), d = SET(Q[3]);                                                      \
        for (int i = 5; i >= 0; i--) p = PRE##add_ps(PRE##mul_ps(p, q), SET(P[i]));                                 \
        for (int i = 2; i >= 0; i--) d = PRE##add_ps(PRE##mul_ps(d, q), SET(Q[i]));                                 \
        return TOI(PRE##mul_ps(PRE##div_ps(PRE##mul_ps(p, v), d), out));                                            \
    }
FLOAT_FORM(IN2, __m256, __m256i, 2, _mm256_, _mm256_set1_ps, _mm256_cvtps_epi32, _mm256_cvtepi32_ps, _mm256_set1_epi32,
           _mm256_castsi256_ps)
FLOAT_FORM(IN5, __m512, __m512i, 5, _mm512_, _mm512_set1_ps, _mm512_cvtps_epi32, _mm512_cvtepi32_ps, _mm512_set1_epi32,
           _mm512_castsi512_ps)

template <bool SILU>
AVX2 void float_avx2(const int16_t* x, int16_t* y, int n) {
    const __m256 scale = _mm256_set1_ps(1.0f / 4096), out = _mm256_set1_ps(SILU ? 4096.0f : 32768.0f);
    for (int j = 0; j < n; j += 16) {
        __m256i r[2];
        for (int k = 0; k < 2; k++) {
            __m256i q = _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i*)(x + j + 8 * k)));
            __m256 v = _mm256_mul_ps(_mm256_cvtepi32_ps(q), scale);
            if constexpr (SILU) r[k] = silu_2(v, out);
            else r[k] = tanh_2(v, out);
        }
        _mm256_storeu_si256((__m256i*)(y + j), _mm256_permute4x64_epi64(_mm256_packs_epi32(r[0], r[1]), 0xD8));
    }
}
template <bool SILU>
AVX512 void float_avx512(const int16_t* x, int16_t* y, int n) {
    const __m512 scale = _mm512_set1_ps(1.0f / 4096), out = _mm512_set1_ps(SILU ? 4096.0f : 32768.0f);
    for (int j = 0; j < n; j += 16) {
        __m512i q = _mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i*)(x + j)));
        __m512 v = _mm512_mul_ps(_mm512_cvtepi32_ps(q), scale);
        __m512i r;
        if constexpr (SILU) r = silu_5(v, out);
        else r = tanh_5(v, out);
        _mm256_storeu_si256((__m256i*)(y + j), _mm512_cvtsepi32_epi16(r));
    }
}

// ---- tables, checks, times
static std::vector<int16_t> read(const std::string& path) {
    FILE* in = fopen(path.c_str(), "rb");
    if (!in) fprintf(stderr, "no %s: run fit.py --dump first\n", path.c_str()), exit(1);
    std::vector<int16_t> v(1 << 17);
    v.resize(fread(v.data(), 2, v.size(), in));
    fclose(in);
    return v;
}
static void planes(Table& t, int count, int from) {
    for (int k = 0; k < 6; k++)
        for (int i = 0; i < count; i++)
            for (int copy = 0; copy < 32; copy += 16) {
                t.plane[k][0][i / 16][copy + i % 16] = (uint8_t)t.c[k][from + i];
                t.plane[k][1][i / 16][copy + i % 16] = (uint8_t)((uint16_t)t.c[k][from + i] >> 8);
            }
}
static Table load(const std::string& path, int count, int degree, int from = 0) {
    Table t{};
    auto v = read(path);
    for (int k = 0; k <= degree; k++) memcpy(t.c[k], &v[k * count], 2 * count);
    t.guard = v.back();
    planes(t, count - from, from);
    return t;
}

struct Variant {
    std::string name;
    std::function<void(const int16_t*, int16_t*, int)> run;
    std::vector<double> times;
};

int main(int argc, char** argv) {
    std::string dir = argc > 1 ? argv[1] : "tables", name = argc > 2 ? argv[2] : "tanh";
    bool silu = name == "silu", avx2 = __builtin_cpu_supports("avx2"), avx512 = __builtin_cpu_supports("avx512bw");
    auto knots = read(dir + "/" + name + ".knots");
    for (int i = 0; i < 2048; i++) pairs.push_back((int)((unsigned)(knots[i + 1] - knots[i]) << 16 | (uint16_t)knots[i]));
    auto line = read(dir + "/" + name + "_2048_1.coefficients");
    for (int i = 0; i < 2048; i++) segments.push_back((int)((unsigned)line[2048 + i] << 16 | (uint16_t)line[i]));
    segments_guard = line.back();
    std::string base = dir + "/" + name + "_";
    static Table t323 = load(base + "32_3.coefficients", 32, 3), t324 = load(base + "32_4.coefficients", 32, 4),
                 t643 = load(base + "64_3.coefficients", 64, 3), t644 = load(base + "64_4.coefficients", 64, 4),
                 odd = load(base + "32_4.coefficients", 32, 4, 16);

    std::vector<int16_t> codes(65536), got(65536), last;
    for (int i = 0; i < 65536; i++) codes[i] = (int16_t)(i - 32768);
    std::vector<Variant> all;
    bool good = true;
    auto add = [&](const std::string& label, bool runs, const std::string& outputs, auto f) {
        if (!runs) return;
        f(codes.data(), got.data(), 65536);
        auto want = outputs.empty() ? last : read(outputs);
        if (label.find("odd") != std::string::npos) {  // its scalar definition: the upper half, mirrored
            for (int i = 0; i < 32768; i++) want[i] = (int16_t)-want[i ? 65536 - i : 65535];
            want[32768] = 0;
        }
        int wrong = 0;
        for (int i = 0; i < 65536 && !want.empty(); i++) wrong += got[i] != want[i];
        if (wrong) printf("%s: %d outputs differ\n", label.c_str(), wrong), good = false;
        if (outputs.empty()) last = got;
        all.push_back({label, f, {}});
    };
    using X = const int16_t*;
    using Y = int16_t*;
    std::string a = dir + "/" + name + ".outputs";
    add("A table 2049            C", true, a, table_c);
    add("A table 2049            AVX2", avx2, a, gather_avx2<false>);
    add("A table 2049            AVX-512", avx512, a, gather_avx512<false>);
    add("B 2048 x 1              C", true, base + "2048_1.outputs", linear_c);
    add("B 2048 x 1              AVX2", avx2, base + "2048_1.outputs", gather_avx2<true>);
    add("B 2048 x 1              AVX-512", avx512, base + "2048_1.outputs", gather_avx512<true>);
#define POLY(S, BITS, D, T)                                                                                            \
    add("B " #S " x " #D "                C", true, base + #S "_" #D ".outputs",                                       \
        [](X x, Y y, int n) { poly_c<BITS, D>(T, x, y, n); });                                                         \
    add("B " #S " x " #D "                AVX2", avx2, base + #S "_" #D ".outputs",                                    \
        [](X x, Y y, int n) { poly_avx2<BITS, D, false>(T, x, y, n); });                                               \
    add("B " #S " x " #D "                AVX-512", avx512, base + #S "_" #D ".outputs",                               \
        [](X x, Y y, int n) { poly_avx512<BITS, D>(T, x, y, n); });
    POLY(32, 11, 3, t323)
    POLY(32, 11, 4, t324)
    POLY(64, 10, 3, t643)
    POLY(64, 10, 4, t644)
    if (!silu)
        add("B 16 x 4 odd            AVX2", avx2, base + "32_4.outputs",
            [](X x, Y y, int n) { poly_avx2<11, 4, true>(odd, x, y, n); });
    add("C float                 AVX2", avx2, "", silu ? float_avx2<true> : float_avx2<false>);
    add("C float                 AVX-512", avx512, "", silu ? float_avx512<true> : float_avx512<false>);
    if (!good) return 1;
    printf("%s: all variants equal on 65536 codes\n", name.c_str());

    constexpr int BATCH = 4096, CALLS = 10, ROUNDS = 1000;
    alignas(64) static int16_t in[BATCH], out[BATCH];
    unsigned seed = 1;
    for (int i = 0; i < BATCH; i++) seed = seed * 1664525u + 1013904223u, in[i] = (int16_t)(seed >> 16);
    for (int round = 0; round < ROUNDS; round++)
        for (size_t v = 0; v < all.size(); v++) {
            auto& it = all[(v * 7 + (size_t)round * 5) % all.size()];
            it.run(in, out, BATCH);
            auto start = std::chrono::steady_clock::now();
            for (int c = 0; c < CALLS; c++) it.run(in, out, BATCH);
            it.times.push_back(std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count() /
                               (BATCH * CALLS));
        }
    printf("%-34s %8s %8s %8s  ns a value\n", "", "least", "10%", "median");
    for (auto& v : all) {
        std::sort(v.times.begin(), v.times.end());
        if (!v.times.empty())
            printf("%-34s %8.3f %8.3f %8.3f\n", v.name.c_str(), v.times[0], v.times[v.times.size() / 10],
                   v.times[v.times.size() / 2]);
    }
}
