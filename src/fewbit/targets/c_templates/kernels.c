{# The kernels that this network needs, and no other: kernels/NAME.c once for each set of types, behind what they share. #}
{% macro clamp(y) %}(v < {{ limits[y][0] }} ? {{ limits[y][0] }} : v > {{ limits[y][1] }} ? {{ limits[y][1] }} : v){% endmacro %}
{% if dsp_kernels %}
{% include "kernels/dsp.c" %}
{% endif %}
{% if rounds %}
/* S4: v / 2^shift, rounded half to even */
static int64_t rounded(int64_t v, int shift) {
  const int64_t floor = v < 0 ? ~(~v >> shift) : v >> shift;
  const uint64_t rest = (uint64_t)v & (((uint64_t)1 << shift) - 1), half = (uint64_t)1 << (shift - 1);
  return floor + (rest > half || (rest == half && (floor & 1)));
}

{% endif %}
{% if rounds_high %}
/* S4 for shifts of 33 to 62, in 32 bits: the lower word only decides a tie */
static int32_t rounded_high(int64_t v, int shift) {
  const int32_t high = (int32_t)(v < 0 ? ~(~v >> 32) : v >> 32);
  const int32_t floor = high < 0 ? ~(~high >> (shift - 32)) : high >> (shift - 32);
  const uint32_t rest = (uint32_t)high & (((uint32_t)1 << (shift - 32)) - 1), half = (uint32_t)1 << (shift - 33);
  return floor + (rest > half || (rest == half && ((uint32_t)v || (floor & 1))));
}

{% endif %}
{% for name, k in kernels.items() %}
{% include "kernels/" ~ k.operation ~ ".c" %}

{% endfor %}
