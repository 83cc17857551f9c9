/* runs: to, from, length; from -1 is the fill */
static void {{ name }}(const {{ c_types[k.y] }} *x, {{ c_types[k.y] }} *y, const int32_t *runs, int count, int fill) {
  int r;
  int32_t i;
  for (r = 0; r < count; r++, runs += 3)
    for (i = 0; i < runs[2]; i++) y[runs[0] + i] = runs[1] < 0 ? ({{ c_types[k.y] }})fill : x[runs[1] + i];
}
