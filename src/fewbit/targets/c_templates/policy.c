/* {{ name }}: made by fewbit{% if source %} from {{ source }}{% endif %}. Do not edit; export it again.
 *
{% for call in calls %}
 *   {{ "%-2d" | format(loop.index) }} {{ call.comment }}
{% endfor %}
{% if evidence.kept is defined and evidence.kept is not none %}
 *
 * Kept {{ "%.1f" | format(100 * evidence.kept) }}% of the float policy's return (95% interval {{ "%.1f" | format(100 * evidence.kept_ci95[0]) }} to {{ "%.1f" | format(100 * evidence.kept_ci95[1]) }}) in {{ evidence.env }}, {{ evidence.return_quantized.n }} episodes.
{% endif %}
 *
 * Clauses S1-S7 are those of fewbit's docs/semantics.md. Shifts of negative numbers are avoided; every sum is proven to fit.
 */
#include "{{ name }}.h"

#include <string.h>

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

void {{ name }}_act({% for end in inputs %}const {{ end.type }} *{{ end.name }}, {% endfor %}{% for end in outputs %}{{ end.type }} *{{ end.name }}{{ ", " if not loop.last }}{% endfor %}) {
{% for call in calls %}
  /* {{ loop.index }}: {{ call.comment }} */
  {{ call.text }}
{% endfor %}
{% for end in outputs if not end.direct %}
  memcpy({{ end.name }}, {{ end.from }}, {{ end.count }} * sizeof({{ end.type }}));
{% endfor %}
}

{% for values in tests.inputs %}
static const {{ inputs[loop.index0].type }} test_in{{ loop.index0 }}[{{ values.size }}] = {
{{ array(values) }}
};
{% endfor %}
{% for values in tests.outputs %}
static const {{ outputs[loop.index0].type }} test_out{{ loop.index0 }}[{{ values.size }}] = {
{{ array(values) }}
};
{% endfor %}

int {{ name }}_self_test(void) {
{% for end in outputs %}
  static {{ end.type }} got{{ loop.index0 }}[{{ end.count }}];
{% endfor %}
  int wrong = 0, k, i;
  for (k = 0; k < {{ tests.outputs[0].size // outputs[0].count }}; k++) {
    {{ name }}_act({% for end in inputs %}test_in{{ loop.index0 }} + k * {{ end.count }}, {% endfor %}{% for end in outputs %}got{{ loop.index0 }}{{ ", " if not loop.last }}{% endfor %});
{% for end in outputs %}
    for (i = 0; i < {{ end.count }}; i++) wrong += got{{ loop.index0 }}[i] != test_out{{ loop.index0 }}[k * {{ end.count }} + i];
{% endfor %}
  }
  return wrong;
}
