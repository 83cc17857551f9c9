/* {{ name }}: made by fewbit{% if source %} from {{ source | comment }}{% endif %}. Do not edit; export it again.
 *
 * One call is one action. No heap, no libm; {{ sizes.flash_bytes }} bytes of constants, {{ sizes.ram_bytes }} bytes of static memory, {{ sizes.macs }} multiplications.
 * Not reentrant: the static memory is one call's.
 */
#ifndef {{ name | upper }}_H
#define {{ name | upper }}_H

#include <stdint.h>

#define {{ name | upper }}_FLASH_BYTES {{ sizes.flash_bytes }}
#define {{ name | upper }}_RAM_BYTES {{ sizes.ram_bytes }}
{% for end in observations + actions %}
#define {{ name | upper }}_{{ end.name | upper }}_SIZE {{ end.count }}
{% endfor %}

#ifdef __cplusplus
extern "C" {
#endif
{% if state %}

/* What the network remembers from one action to the next ({{ sizes.state_bytes }} bytes): one for each robot, reset when an episode starts. */
typedef struct {
{% for end in state %}
  {{ end.type }} {{ end.name }}[{{ end.count }}];
{% endfor %}
} {{ name }}_state;

void {{ name }}_reset({{ name }}_state *state);
{% endif %}

/* {% for end in observations %}{{ end.name }}[{{ end.count }}]{{ ", " if not loop.last }}{% endfor %} -> {% for end in actions %}{{ end.name }}[{{ end.count }}]{{ ", " if not loop.last }}{% endfor %}; NaN counts as the zero point's code */
void {{ name }}_act({% include "parameters.c" %});

/* Runs embedded observations once, at start-up: 0 if every action is, to the bit, what it was when this file was made. */
int {{ name }}_self_test(void);

#ifdef __cplusplus
}
#endif
#endif
