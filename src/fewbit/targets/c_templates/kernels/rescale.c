/* S4 alone */
static void {{ name }}(const {{ c_types[k.x] }} *x, {{ c_types[k.y] }} *y, int n, int zero_in, int32_t m, int shift, int zero) {
  int i;
  for (i = 0; i < n; i++) {
    const int64_t v = rounded((int64_t)((int32_t)x[i] - zero_in) * m, shift) + zero;
    y[i] = ({{ c_types[k.y] }}){{ clamp(k.y) }};
  }
}
