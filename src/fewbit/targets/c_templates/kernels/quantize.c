/* S1: {{ k.how }}, rounded half to even, clamped; NaN becomes the zero point */
static void {{ name }}(const float *x, {{ c_types[k.y] }} *y, int n, float scale, int zero) {
  const float low = (float)({{ limits[k.y][0] }} - zero), high = (float)({{ limits[k.y][1] }} - zero);
  int i;
  for (i = 0; i < n; i++) {
    float v = x[i] {{ "*" if k.how == "times" else "/" }} scale, rest;
    int32_t code;
    v = v != v ? 0.0f : v < low ? low : v > high ? high : v;
    code = (int32_t)v;
    rest = v - (float)code;
    if (rest > 0.5f || (rest == 0.5f && (code & 1))) code++;
    if (rest < -0.5f || (rest == -0.5f && (code & 1))) code--;
    y[i] = ({{ c_types[k.y] }})(code + zero);
  }
}
