/* the first of equals */
static void {{ name }}(const float *x, int32_t *y, int count, int inner) {
  int c, i;
  for (c = 0; c < count; c++, x += inner) {
    int best = 0;
    for (i = 1; i < inner && x[best] == x[best]; i++)
      if (x[i] > x[best] || x[i] != x[i]) best = i;
    y[c] = best;
  }
}
