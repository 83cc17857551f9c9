// The smallest use: check the network once, then act.
#include <{{ name }}.h>

{% if state %}
static {{ name }}_state state;

{% endif %}
void setup() {
  Serial.begin(115200);
  Serial.println({{ name }}_self_test() == 0 ? "self-test: passed" : "self-test: FAILED");
{% if state %}
  {{ name }}_reset(&state);  // and whenever an episode starts
{% endif %}
}

void loop() {
{% for end in observations %}
  static {{ end.type }} {{ end.name }}[{{ end.count }}];  // fill it from the sensors
{% endfor %}
{% for end in actions %}
  static {{ end.type }} {{ end.name }}[{{ end.count }}];
{% endfor %}
  {{ name }}_act({{ "&state, " if state }}{% for end in observations + actions %}{{ end.name }}{{ ", " if not loop.last }}{% endfor %});
  Serial.println({{ actions[0].name }}[0]);
  delay(20);
}
