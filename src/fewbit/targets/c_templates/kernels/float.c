{% set two = {"add": "a[i] + b[i]", "sub": "a[i] - b[i]", "mul": "a[i] * b[i]", "div": "a[i] / b[i]", "min": "a[i] != a[i] || a[i] < b[i] ? a[i] : b[i]", "max": "a[i] != a[i] || a[i] > b[i] ? a[i] : b[i]"} %}
{% set one = {"relu": "a[i] != a[i] || a[i] > 0 ? a[i] : 0.0f", "neg": "-a[i]", "abs": "a[i] < 0 ? -a[i] : a[i]"} %}
static void {{ name }}(const float *a, {{ "const float *b, " if k.op in two }}float *y, int n) {
  int i;
  for (i = 0; i < n; i++) y[i] = {{ two[k.op] if k.op in two else one[k.op] }};
}
