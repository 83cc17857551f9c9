// The smallest use: check the network once, then act.
#include <{{ name }}.h>

void setup() {
  Serial.begin(115200);
  Serial.println({{ name }}_self_test() == 0 ? "self-test: passed" : "self-test: FAILED");
}

void loop() {
{% for end in inputs %}
  static {{ end.type }} {{ end.name }}[{{ end.count }}];  // fill it from the sensors
{% endfor %}
{% for end in outputs %}
  static {{ end.type }} {{ end.name }}[{{ end.count }}];
{% endfor %}
  {{ name }}_act({% for end in inputs + outputs %}{{ end.name }}{{ ", " if not loop.last }}{% endfor %});
  Serial.println({{ outputs[0].name }}[0]);
  delay(20);
}
