/* {{ name }}: made by fewbit{% if source %} from {{ source }}{% endif %}. Do not edit; export it again.
 *
 * One call is one action. No heap, no libm; {{ sizes.flash_bytes }} bytes of constants, {{ sizes.ram_bytes }} bytes of static memory, {{ sizes.macs }} multiplications.
 * Not reentrant: the static memory is one call's.
 */
#ifndef {{ name | upper }}_H
#define {{ name | upper }}_H

#include <stdint.h>

#define {{ name | upper }}_FLASH_BYTES {{ sizes.flash_bytes }}
#define {{ name | upper }}_RAM_BYTES {{ sizes.ram_bytes }}
{% for end in inputs %}
#define {{ name | upper }}_{{ end.name | upper }}_SIZE {{ end.count }}
{% endfor %}
{% for end in outputs %}
#define {{ name | upper }}_{{ end.name | upper }}_SIZE {{ end.count }}
{% endfor %}

#ifdef __cplusplus
extern "C" {
#endif

/* {% for end in inputs %}{{ end.name }}[{{ end.count }}]{{ ", " if not loop.last }}{% endfor %} -> {% for end in outputs %}{{ end.name }}[{{ end.count }}]{{ ", " if not loop.last }}{% endfor %}; NaN counts as the zero point's code */
void {{ name }}_act({% for end in inputs %}const {{ end.type }} *{{ end.name }}, {% endfor %}{% for end in outputs %}{{ end.type }} *{{ end.name }}{{ ", " if not loop.last }}{% endfor %});

/* Runs embedded observations once, at start-up: 0 if every action is, to the bit, what it was when this file was made. */
int {{ name }}_self_test(void);

#ifdef __cplusplus
}
#endif
#endif
