static void {{ name }}(const {{ c_types[k.x] }} *x, float *y, int n) {
  int i;
  for (i = 0; i < n; i++) y[i] = (float)x[i];
}
