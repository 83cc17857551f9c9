/* The smallest use: check the network once, then act. */
#include <stdio.h>

#include "{{ name }}.h"

int {{ entry }}(void) {
{% for end in observations %}
  static {{ end.type }} {{ end.name }}[{{ end.count }}]; /* fill it from the sensors */
{% endfor %}
{% for end in actions %}
  static {{ end.type }} {{ end.name }}[{{ end.count }}];
{% endfor %}
{% if state %}
  static {{ name }}_state state;
{% endif %}
  const int wrong = {{ name }}_self_test();
  printf("self-test: %s\n", wrong ? "FAILED" : "passed");
{% if state %}
  {{ name }}_reset(&state);
{% endif %}
  {{ name }}_act({{ "&state, " if state }}{% for end in observations + actions %}{{ end.name }}{{ ", " if not loop.last }}{% endfor %});
  printf("first action: %d thousandths\n", (int)(1000 * {{ actions[0].name }}[0]));
  return wrong;
}
