{# The kernels that this network needs, and no other: a static function each, written out for its types. #}
{% macro clamp(y) %}(v < {{ limits[y][0] }} ? {{ limits[y][0] }} : v > {{ limits[y][1] }} ? {{ limits[y][1] }} : v){% endmacro %}
{% if dsp %}
#if defined(__ARM_FEATURE_SIMD32) /* cortex-m4, m7 and the like: two 16-bit products an instruction, the same sums */
#include <arm_acle.h>
{% if "u8" in dsp %}
static int32_t dot4_u8(const uint8_t *x, const int8_t *w, int32_t sum) {
  uint32_t a, b;
  memcpy(&a, x, 4);
  memcpy(&b, w, 4);
  sum = __smlad((int16x2_t)__uxtb16(a), __sxtb16((int8x4_t)b), sum);
  return __smlad((int16x2_t)__uxtb16((a >> 8)), __sxtb16((int8x4_t)(b >> 8)), sum);
}
{% endif %}
{% if "i8" in dsp %}
static int32_t dot4_i8(const int8_t *x, const int8_t *w, int32_t sum) {
  uint32_t a, b;
  memcpy(&a, x, 4);
  memcpy(&b, w, 4);
  sum = __smlad(__sxtb16((int8x4_t)a), __sxtb16((int8x4_t)b), sum);
  return __smlad(__sxtb16((int8x4_t)(a >> 8)), __sxtb16((int8x4_t)(b >> 8)), sum);
}
{% endif %}
{% if "i16" in dsp %}
static int32_t dot4_i16(const int16_t *x, const int8_t *w, int32_t sum) {
  uint32_t a, b, c, even, odd;
  memcpy(&a, x, 4);
  memcpy(&c, x + 2, 4);
  memcpy(&b, w, 4);
  even = (uint32_t)__sxtb16((int8x4_t)b); /* codes 0 and 2 */
  odd = (uint32_t)__sxtb16((int8x4_t)(b >> 8));
  sum = __smlad((int16x2_t)a, (int16x2_t)((even & 0xFFFFu) | odd << 16), sum);
  return __smlad((int16x2_t)c, (int16x2_t)(even >> 16 | (odd & 0xFFFF0000u)), sum);
}
{% endif %}
#endif

{% endif %}
{% if rounds %}
/* S4: v / 2^shift, rounded half to even */
static int64_t rounded(int64_t v, int shift) {
  const int64_t floor = v < 0 ? ~(~v >> shift) : v >> shift;
  const uint64_t rest = (uint64_t)v & (((uint64_t)1 << shift) - 1), half = (uint64_t)1 << (shift - 1);
  return floor + (rest > half || (rest == half && (floor & 1)));
}

{% endif %}
{% for name, k in kernels.items() %}
{% if k.operation == "copy" %}
/* runs: to, from, length; from -1 is the fill */
static void {{ name }}(const {{ c_types[k.y] }} *x, {{ c_types[k.y] }} *y, const int32_t *runs, int count, int fill) {
  int r;
  int32_t i;
  for (r = 0; r < count; r++, runs += 3)
    for (i = 0; i < runs[2]; i++) y[runs[0] + i] = runs[1] < 0 ? ({{ c_types[k.y] }})fill : x[runs[1] + i];
}
{% elif k.operation == "quantize" %}
/* S1: {{ k.how }}, rounded half to even, clamped; NaN becomes the zero point */
static void {{ name }}(const float *x, {{ c_types[k.y] }} *y, int n, float scale, int zero) {
  const float low = (float)({{ limits[k.y][0] }} - zero), high = (float)({{ limits[k.y][1] }} - zero);
  int i;
  for (i = 0; i < n; i++) {
    float v = x[i] {{ "*" if k.how == "times" else "/" }} scale, rest;
    int32_t code;
    v = v != v ? 0.0f : v < low ? low : v > high ? high : v;
    code = (int32_t)v;
    rest = v - (float)code;
    if (rest > 0.5f || (rest == 0.5f && (code & 1))) code++;
    if (rest < -0.5f || (rest == -0.5f && (code & 1))) code--;
    y[i] = ({{ c_types[k.y] }})(code + zero);
  }
}
{% elif k.operation == "linear" %}
{% set acc = "int64_t" if k.acc == "wide" else "int32_t" %}
{% set x = "(x[i] - zero_in)" if k.z == "zero" else "x[i]" %}
/* S2-S4: count vectors of fan_in codes -> count vectors of rows */
static void {{ name }}(const {{ c_types[k.x] }} *x, {{ c_types[k.y] }} *y, const {{ {"w2": "uint8_t", "w4": "uint8_t", "w8": "int8_t", "w16": "int16_t"}[k.w] }} *weight,
    const {{ acc }} *bias, int rows, int fan_in, int count{{ ", int zero_in" if k.z == "zero" }}, {% if k.y == "f32" %}const float *scale{% else %}const int32_t *m, const uint8_t *shift, int zero_out{% endif %}) {
  int c, o, i;
  for (c = 0; c < count; c++, x += fan_in) {
    const {{ {"w2": "uint8_t", "w4": "uint8_t", "w8": "int8_t", "w16": "int16_t"}[k.w] }} *w = weight;
    for (o = 0; o < rows; o++) {
      {{ acc }} sum = bias[o];
{% if k.w in ("w8", "w16") %}
      i = 0;
{% if name in dsp_kernels %}
#if defined(__ARM_FEATURE_SIMD32)
      for (; i + 4 <= fan_in; i += 4) sum = dot4_{{ k.x }}(x + i, w + i, sum);
#endif
{% endif %}
      for (; i < fan_in; i++) sum += ({{ acc }}){{ x }} * w[i];
      w += fan_in;
{% else %}
{% set bits = 4 if k.w == "w4" else 2 %}
{% set per = 8 // bits %}
      for (i = 0; i < fan_in; i++) {
        const int code = w[i / {{ per }}] >> (i % {{ per }} * {{ bits }}) & {{ 2 ** bits - 1 }};
        sum += ({{ acc }}){{ x }} * ((code ^ {{ 2 ** (bits - 1) }}) - {{ 2 ** (bits - 1) }});
      }
      w += (fan_in + {{ per - 1 }}) / {{ per }};
{% endif %}
{% if k.y == "f32" %}
      *y++ = (float)sum * scale[o];
{% else %}
      {
        const int64_t v = rounded((int64_t)sum * m[o], shift[o]) + zero_out;
        *y++ = ({{ c_types[k.y] }}){{ clamp(k.y) }};
      }
{% endif %}
    }
  }
}
{% elif k.operation == "table" %}
/* S6: polynomials over 2^bits segments in 16 bits, then S4 */
static void {{ name }}(const int16_t *x, {{ c_types[k.y] }} *y, int n, const int16_t *c, int bits, int degree, int guard, int32_t m, int shift, int zero) {
  int j, k;
  for (j = 0; j < n; j++) {
    const int32_t u = (int32_t)x[j] + 32768, i = u >> (16 - bits), place = ((u << bits) & 65535) - 32768;
    const int32_t fine = place < 0 ? ~(~place >> guard) : place >> guard;
    int32_t h = c[(degree << bits) + i], p;
    int64_t v;
    for (k = degree - 1; k >= 0; k--) {
      p = h * (k ? place : fine) + 16384;
      h = c[(k << bits) + i] + (p < 0 ? ~(~p >> 15) : p >> 15);
    }
    h = h < -32768 ? -32768 : h > 32767 ? 32767 : h;
    v = rounded((int64_t)h * m, shift) + zero;
    y[j] = ({{ c_types[k.y] }}){{ clamp(k.y) }};
  }
}
{% elif k.operation == "lookup" %}
/* S6 of 8-bit codes */
static void {{ name }}(const {{ c_types[k.x] }} *x, {{ c_types[k.y] }} *y, int n, const {{ c_types[k.y] }} *table) {
  int i;
  for (i = 0; i < n; i++) y[i] = table[x[i] - ({{ limits[k.x][0] }})];
}
{% elif k.operation == "rescale" %}
/* S4 alone */
static void {{ name }}(const {{ c_types[k.x] }} *x, {{ c_types[k.y] }} *y, int n, int zero_in, int32_t m, int shift, int zero) {
  int i;
  for (i = 0; i < n; i++) {
    const int64_t v = rounded((int64_t)((int32_t)x[i] - zero_in) * m, shift) + zero;
    y[i] = ({{ c_types[k.y] }}){{ clamp(k.y) }};
  }
}
{% elif k.operation == "add" %}
/* S5: two products on one shift, one rounding */
static void {{ name }}(const {{ c_types[k.a] }} *a, const {{ c_types[k.b] }} *b, {{ c_types[k.y] }} *y, int n, int zero_a, int zero_b, int32_t m_a, int32_t m_b, int shift, int zero) {
  int i;
  for (i = 0; i < n; i++) {
    const int64_t v = rounded((int64_t)((int32_t)a[i] - zero_a) * m_a + (int64_t)((int32_t)b[i] - zero_b) * m_b, shift) + zero;
    y[i] = ({{ c_types[k.y] }}){{ clamp(k.y) }};
  }
}
{% elif k.operation == "multiply" %}
/* S5: the product of the codes, one multiplier */
static void {{ name }}(const {{ c_types[k.a] }} *a, const {{ c_types[k.b] }} *b, {{ c_types[k.y] }} *y, int n, int zero_a, int zero_b, int32_t m, int shift, int zero) {
  int i;
  for (i = 0; i < n; i++) {
    const int64_t v = rounded((int64_t)((int32_t)a[i] - zero_a) * ((int32_t)b[i] - zero_b) * m, shift) + zero;
    y[i] = ({{ c_types[k.y] }}){{ clamp(k.y) }};
  }
}
{% elif k.operation == "dequantize" %}
/* S7: one scale, or each its own */
static void {{ name }}(const {{ c_types[k.x] }} *x, float *y, int n, int zero, const float *scale, int each) {
  int i;
  for (i = 0; i < n; i++) y[i] = (float)((int32_t)x[i] - zero) * scale[each ? i : 0];
}
{% elif k.operation == "float" %}
{% set two = {"add": "a[i] + b[i]", "sub": "a[i] - b[i]", "mul": "a[i] * b[i]", "div": "a[i] / b[i]", "min": "a[i] != a[i] || a[i] < b[i] ? a[i] : b[i]", "max": "a[i] != a[i] || a[i] > b[i] ? a[i] : b[i]"} %}
{% set one = {"relu": "a[i] != a[i] || a[i] > 0 ? a[i] : 0.0f", "neg": "-a[i]", "abs": "a[i] < 0 ? -a[i] : a[i]"} %}
static void {{ name }}(const float *a, {{ "const float *b, " if k.op in two }}float *y, int n) {
  int i;
  for (i = 0; i < n; i++) y[i] = {{ two[k.op] if k.op in two else one[k.op] }};
}
{% elif k.operation == "argmax" %}
/* the first of equals */
static void {{ name }}(const float *x, int32_t *y, int count, int inner) {
  int c, i;
  for (c = 0; c < count; c++, x += inner) {
    int best = 0;
    for (i = 1; i < inner && x[best] == x[best]; i++)
      if (x[i] > x[best] || x[i] != x[i]) best = i;
    y[c] = best;
  }
}
{% elif k.operation == "cast" %}
static void {{ name }}(const {{ c_types[k.x] }} *x, float *y, int n) {
  int i;
  for (i = 0; i < n; i++) y[i] = (float)x[i];
}
{% endif %}

{% endfor %}
