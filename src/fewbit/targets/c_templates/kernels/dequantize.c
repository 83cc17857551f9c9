/* S7: one scale, or each its own */
static void {{ name }}(const {{ c_types[k.x] }} *x, float *y, int n, int zero, const float *scale, int each) {
  int i;
  for (i = 0; i < n; i++) y[i] = (float)((int32_t)x[i] - zero) * scale[each ? i : 0];
}
