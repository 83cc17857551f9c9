/* S5: the product of the codes, one multiplier */
static void {{ name }}(const {{ c_types[k.a] }} *a, const {{ c_types[k.b] }} *b, {{ c_types[k.y] }} *y, int n, int zero_a, int zero_b, int32_t m, int shift, int zero) {
  int i;
  for (i = 0; i < n; i++) {
    const int64_t v = rounded((int64_t)((int32_t)a[i] - zero_a) * ((int32_t)b[i] - zero_b) * m, shift) + zero;
    y[i] = ({{ c_types[k.y] }}){{ clamp(k.y) }};
  }
}
