/* S6 of 8-bit codes */
static void {{ name }}(const {{ c_types[k.x] }} *x, {{ c_types[k.y] }} *y, int n, const {{ c_types[k.y] }} *table) {
  int i;
  for (i = 0; i < n; i++) y[i] = table[x[i] - ({{ limits[k.x][0] }})];
}
