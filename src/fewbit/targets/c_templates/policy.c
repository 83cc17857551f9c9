/* {{ name }}: made by fewbit{% if source %} from {{ source | comment }}{% endif %}. Do not edit; export it again.
 *
{% for call in calls %}
 *   {{ "%-2d" | format(loop.index) }} {{ call.comment | comment }}
{% endfor %}
{% if evidence.kept is defined and evidence.env is defined and evidence.return_quantized is defined %}
 *
 * Kept {{ "%.1f" | format(100 * evidence.kept) }}% of the float policy's return (95% interval {{ "%.1f" | format(100 * evidence.kept_ci95[0]) }} to {{ "%.1f" | format(100 * evidence.kept_ci95[1]) }}) in {{ evidence.env | comment }}, {{ evidence.return_quantized.n }} episodes.
{% endif %}
 *
 * Clauses S1-S8 are those of fewbit's docs/semantics.md. Shifts of negative numbers are avoided; every sum is proven to fit.
 */
#include "{{ name }}.h"

#if defined(__clang__) /* S1: a product and a sum are two roundings, in GNU modes too */
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

#define FEWBIT_INFINITY ((float)1e300)

{% include "kernels.c" %}
{% for c in constants %}
static const {{ c.type }} {{ c.name }}[{{ c.values.size }}] = {
{{ array(c.values) }}
};
{% endfor %}

{% for (type, n), count in slots.items() %}
static {{ c_types[type] }} {{ type }}_{{ n }}[{{ count }}];
{% endfor %}
{% if state %}

void {{ name }}_reset({{ name }}_state *state) {
  int i;
{% for end in state %}
{% if initial[end.name].any() %}
  static const {{ end.type }} start_{{ end.name }}[{{ end.count }}] = {
{{ array(initial[end.name]) }}
  };
{% endif %}
{% endfor %}
{% for end in state %}
  for (i = 0; i < {{ end.count }}; i++) state->{{ end.name }}[i] = {{ "start_%s[i]" % end.name if initial[end.name].any() else 0 }};
{% endfor %}
}
{% endif %}

void {{ name }}_act({% include "parameters.c" %}) {
{% if left %}
  int i;
{% endif %}
{% for call in calls %}
  /* {{ loop.index }}: {{ call.comment | comment }} */
  {{ call.text }}
{% endfor %}
{% for end in left %}
  for (i = 0; i < {{ end.count }}; i++) {{ end.name }}[i] = {{ end.source }}[i];
{% endfor %}
}

{% for values in tests.inputs %}
static const {{ observations[loop.index0].type }} test_in{{ loop.index0 }}[{{ values.size }}] = {
{{ array(values) }}
};
{% endfor %}
{% for values in tests.outputs %}
static const {{ actions[loop.index0].type }} test_out{{ loop.index0 }}[{{ values.size }}] = {
{{ array(values) }}
};
{% endfor %}

int {{ name }}_self_test(void) {
{% if state %}
  static {{ name }}_state state;
{% endif %}
{% for end in actions %}
  static {{ end.type }} got{{ loop.index0 }}[{{ end.count }}];
{% endfor %}
  int wrong = 0, k, i;
{% if state %}
  {{ name }}_reset(&state);
{% endif %}
  for (k = 0; k < {{ tests.outputs[0].size // actions[0].count }}; k++) {
    {{ name }}_act({{ "&state, " if state }}{% for end in observations %}test_in{{ loop.index0 }} + k * {{ end.count }}, {% endfor %}{% for end in actions %}got{{ loop.index0 }}{{ ", " if not loop.last }}{% endfor %});
{% for end in actions %}
    for (i = 0; i < {{ end.count }}; i++) wrong += got{{ loop.index0 }}[i] != test_out{{ loop.index0 }}[k * {{ end.count }} + i];
{% endfor %}
  }
  return wrong;
}
