/* The smallest use: check the network once, then act. */
#include <stdio.h>

#include "{{ name }}.h"

int {{ entry }}(void) {
{% for end in inputs %}
  static {{ end.type }} {{ end.name }}[{{ end.count }}]; /* fill it from the sensors */
{% endfor %}
{% for end in outputs %}
  static {{ end.type }} {{ end.name }}[{{ end.count }}];
{% endfor %}
  const int wrong = {{ name }}_self_test();
  printf("self-test: %s\n", wrong ? "FAILED" : "passed");
  {{ name }}_act({% for end in inputs + outputs %}{{ end.name }}{{ ", " if not loop.last }}{% endfor %});
  printf("first action: %d thousandths\n", (int)(1000 * {{ outputs[0].name }}[0]));
  return wrong;
}
