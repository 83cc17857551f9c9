{# S2-S4, or S7 where y is float. Weights of 2 and 4 bits are stored without their sign, code + {2, 8}: what that adds to every
   sum is a multiple of the codes' own sum, taken away at the start. The zero point's share of a sum is in the bias. #}
{% set acc = "int64_t" if k.acc == "wide" else "int32_t" %}
{% set bits = k.w[1:] | int %}
{% set per = 8 // bits if bits < 8 else 1 %}
{% set w = {2: "uint8_t", 4: "uint8_t", 8: "int8_t", 16: "int16_t"}[bits] %}
{% set order = orders(bits, k.x) if bits < 8 else [] %}
{% set dot = {8: "dot4", 4: "dot8", 2: "dot16"}[bits] if name in dsp_kernels else "" %}
{% if k.y != "f32" %}
static {{ c_types[k.y] }} {{ name }}_out({{ acc }} sum, int32_t m, int shift, int zero) {
{% if k.round == "high" %}
  const int32_t v = rounded_high((int64_t)sum * m, shift) + zero;
{% else %}
  const int64_t v = rounded((int64_t)sum * m, shift) + zero;
{% endif %}
  return ({{ c_types[k.y] }}){{ clamp(k.y) }};
}

{% endif %}
/* S2-S4: count vectors of fan_in codes -> count vectors of rows; two rows at a time, so that a code is read once for both */
static void {{ name }}(const {{ c_types[k.x] }} *x, {{ c_types[k.y] }} *y, const {{ w }} *weight, const {{ acc }} *bias, int rows, int fan_in, int count,
    {% if k.y == "f32" %}const float *scale{% else %}const int32_t *m, const uint8_t *shift, int zero{% endif %}) {
  const int stride = {{ "fan_in" if per == 1 else "(fan_in + %d) / %d" % (per - 1, per) }};
  int c, o, i;
  for (c = 0; c < count; c++, x += fan_in, y += rows) {
{% if per > 1 %}
    {{ acc }} offset = 0;
    for (i = 0; i < fan_in; i++) offset += x[i];
    offset *= {{ 2 ** (bits - 1) }};
{% endif %}
    for (o = 0; o < rows; o += 2) {
      const int next = o + 1 < rows; /* 0: the last of an odd number, done twice */
      const {{ w }} *w0 = weight + (int32_t)o * stride, *w1 = w0 + (next ? stride : 0);
      {{ acc }} sum0 = bias[o]{{ " - offset" if per > 1 }}, sum1 = bias[o + next]{{ " - offset" if per > 1 }};
      i = 0;
{% if dot %}
#ifdef FEWBIT_DSP
      for (; i < (fan_in & ~{{ dot[3:] | int - 1 }}); i += {{ dot[3:] }}, w0 += 4, w1 += 4) {{ dot }}_{{ k.x }}(x + i, w0, w1, &sum0, &sum1);
{% if per == 1 %}
#endif
{% else %}
#else
{% endif %}
{% endif %}
{% if per == 1 %}
      for (; i < fan_in; i++) {
        const {{ acc }} code = x[i];
        sum0 += code * *w0++;
        sum1 += code * *w1++;
      }
{% else %}
{% set group = order | length %}
      for (; i < (fan_in & ~{{ group - 1 }}); i += {{ group }}, w0 += {{ group // per }}, w1 += {{ group // per }}) {
        {{ acc }} code;
{% for at in order %}
{% set byte, low = loop.index0 // per, loop.index0 % per * bits %}
        code = x[i{{ " + %d" % at if at }}];
        sum0 += code * (w0[{{ byte }}]{{ " >> %d" % low if low }}{{ " & %d" % (2 ** bits - 1) if low + bits < 8 }});
        sum1 += code * (w1[{{ byte }}]{{ " >> %d" % low if low }}{{ " & %d" % (2 ** bits - 1) if low + bits < 8 }});
{% endfor %}
      }
{% if dot %}
#endif
{% endif %}
      {
        int at = 0; /* the rest lies in its own order */
        for (; i < fan_in; i++, at += {{ bits }}) {
          sum0 += ({{ acc }})x[i] * (w0[at / 8] >> at % 8 & {{ 2 ** bits - 1 }});
          sum1 += ({{ acc }})x[i] * (w1[at / 8] >> at % 8 & {{ 2 ** bits - 1 }});
        }
      }
{% endif %}
{% if k.y == "f32" %}
      y[o] = (float)sum0 * scale[o];
      y[o + next] = (float)sum1 * scale[o + next];
{% else %}
      y[o] = {{ name }}_out(sum0, m[o], shift[o], zero);
      y[o + next] = {{ name }}_out(sum1, m[o + next], shift[o + next], zero);
{% endif %}
    }
  }
}
