#if defined(__ARM_FEATURE_SIMD32) && defined(__GNUC__)
/* cortex-m4, m7 and the like: two 16-bit products an instruction, for two rows at once; the same sums */
#include <arm_acle.h>
#define FEWBIT_DSP 1
{% if "i16" in dsp %}
#define HALVES(a, b) ((int16x2_t)(((uint32_t)(a) & 0xFFFFu) | (uint32_t)(b) << 16)) /* the lower halves of both */
#define UPPERS(a, b) ((int16x2_t)((uint32_t)(a) >> 16 | ((uint32_t)(b) & 0xFFFF0000u)))
{% endif %}

static inline uint32_t word(const void *p) {
  uint32_t v;
  __builtin_memcpy(&v, p, 4);
  return v;
}
{% for x in dsp if x != "i16" %}
{% set extend = "__uxtb16((uint8x4_t)" if x == "u8" else "__sxtb16((int8x4_t)" %}

static inline void dot4_{{ x }}(const {{ c_types[x] }} *x, const int8_t *w0, const int8_t *w1, int32_t *sum0, int32_t *sum1) {
  const uint32_t v = word(x), a = word(w0), b = word(w1);
  const int16x2_t even = (int16x2_t){{ extend }}v), odd = (int16x2_t){{ extend }}(v >> 8 | v << 24));
  *sum0 = __smlad(odd, __sxtb16((int8x4_t)(a >> 8 | a << 24)), __smlad(even, __sxtb16((int8x4_t)a), *sum0));
  *sum1 = __smlad(odd, __sxtb16((int8x4_t)(b >> 8 | b << 24)), __smlad(even, __sxtb16((int8x4_t)b), *sum1));
}
{% endfor %}
{% if "i16" in dsp %}

static inline void dot4_i16(const int16_t *x, const int8_t *w0, const int8_t *w1, int32_t *sum0, int32_t *sum1) {
  const uint32_t v = word(x), u = word(x + 2), a = word(w0), b = word(w1);
  const int16x2_t even = HALVES(v, u), odd = UPPERS(v, u); /* codes 0 and 2, 1 and 3 */
  *sum0 = __smlad(odd, __sxtb16((int8x4_t)(a >> 8 | a << 24)), __smlad(even, __sxtb16((int8x4_t)a), *sum0));
  *sum1 = __smlad(odd, __sxtb16((int8x4_t)(b >> 8 | b << 24)), __smlad(even, __sxtb16((int8x4_t)b), *sum1));
}
{% endif %}
{% for bits, x in dsp_packed %}
{% set codes = 32 // bits %}

/* {{ codes }} codes by a word of {{ bits }}-bit weights, which lie so that weights k and k + {{ codes // 2 }} of it are a pair's */
static inline void dot{{ codes }}_{{ x }}(const {{ c_types[x] }} *x, const uint8_t *w0, const uint8_t *w1, int32_t *sum0, int32_t *sum1) {
  const uint32_t a = word(w0), b = word(w1);
  int32_t s0 = *sum0, s1 = *sum1; /* in registers where a compiler makes calls of it */
{% set mask = "0x%08Xu" % (65537 * (2 ** bits - 1)) %}
{% for k in range(codes // 2) %}
{% if x == "i16" %}
  const int16x2_t p{{ k }} = (int16x2_t)word(x{{ " + %d" % (2 * k) if k }});
{% elif k % 2 == 0 %}
  const uint32_t v{{ k }} = word(x{{ " + %d" % (2 * k) if k }});
  const int16x2_t p{{ k }} = (int16x2_t)__{{ "u" if x == "u8" else "s" }}xtb16(({{ "u" if x == "u8" }}int8x4_t)v{{ k }});
{% else %}
  const int16x2_t p{{ k }} = (int16x2_t)__{{ "u" if x == "u8" else "s" }}xtb16(({{ "u" if x == "u8" }}int8x4_t)(v{{ k - 1 }} >> 8 | v{{ k - 1 }} << 24));
{% endif %}
  s0 = __smlad(p{{ k }}, (int16x2_t)(a{{ " >> %d" % (bits * k) if k }} & {{ mask }}), s0);
  s1 = __smlad(p{{ k }}, (int16x2_t)(b{{ " >> %d" % (bits * k) if k }} & {{ mask }}), s1);
{% endfor %}
  *sum0 = s0;
  *sum1 = s1;
}
{% endfor %}
#endif

