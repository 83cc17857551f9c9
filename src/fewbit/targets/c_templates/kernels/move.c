static void {{ name }}(const {{ c_types[k.y] }} *x, {{ c_types[k.y] }} *y, int n) {
  int i;
  for (i = 0; i < n; i++) y[i] = x[i];
}
