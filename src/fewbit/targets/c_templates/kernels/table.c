/* S6: polynomials over 2^bits segments in 16 bits, then S4 */
static void {{ name }}(const int16_t *x, {{ c_types[k.y] }} *y, int n, const int16_t *c, int bits, int degree, int guard, int32_t m, int shift, int zero) {
  int j, k;
  for (j = 0; j < n; j++) {
    const int32_t u = (int32_t)x[j] + 32768, i = u >> (16 - bits), place = ((u << bits) & 65535) - 32768;
    const int32_t fine = place < 0 ? ~(~place >> guard) : place >> guard;
    int32_t h = c[(degree << bits) + i], p;
    int64_t v;
    for (k = degree - 1; k >= 0; k--) {
      p = h * (k ? place : fine) + 16384;
      h = c[(k << bits) + i] + (p < 0 ? ~(~p >> 15) : p >> 15);
    }
    h = h < -32768 ? -32768 : h > 32767 ? 32767 : h;
    v = rounded((int64_t)h * m, shift) + zero;
    y[j] = ({{ c_types[k.y] }}){{ clamp(k.y) }};
  }
}
