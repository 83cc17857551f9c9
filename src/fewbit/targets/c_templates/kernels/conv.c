/* A convolution: at each position its patch is gathered, then the layer is applied to it. g: rows and columns of positions; stride,
   padding, kernel, dilation and size of the image, each down and across; channels */
static void {{ name }}(const {{ c_types[k.x] }} *x, {{ c_types[k.x] }} *patch, {{ c_types[k.y] }} *y, const int32_t *g, int fill,
    const {{ {2: "uint8_t", 4: "uint8_t", 8: "int8_t", 16: "int16_t"}[k.w[1:] | int] }} *weight, const {{ "int64_t" if k.acc == "wide" else "int32_t" }} *bias, int rows, int fan_in,
    {% if k.y == "f32" %}const float *scale{% else %}const int32_t *m, const uint8_t *shift, int zero{% endif %}) {
  const int32_t high = g[10], wide = g[11], channels = g[12];
  int32_t row, column, i, j, c, down, across;
  for (row = 0; row < g[0]; row++)
    for (column = 0; column < g[1]; column++, y += rows) {
      {{ c_types[k.x] }} *to = patch;
{% if k.channels == "last" %}
      for (i = 0; i < g[6]; i++)
        for (j = 0; j < g[7]; j++) {
          down = row * g[2] - g[4] + i * g[8];
          across = column * g[3] - g[5] + j * g[9];
          if (down >= 0 && down < high && across >= 0 && across < wide) {
            const {{ c_types[k.x] }} *from = x + (down * wide + across) * channels;
            for (c = 0; c < channels; c++) *to++ = from[c];
          } else {
            for (c = 0; c < channels; c++) *to++ = ({{ c_types[k.x] }})fill;
          }
        }
{% else %}
      for (c = 0; c < channels; c++)
        for (i = 0; i < g[6]; i++) {
          down = row * g[2] - g[4] + i * g[8];
          across = column * g[3] - g[5];
          for (j = 0; j < g[7]; j++, across += g[9]) {
            const int inside = down >= 0 && down < high && across >= 0 && across < wide;
            *to++ = inside ? x[(c * high + down) * wide + across] : ({{ c_types[k.x] }})fill;
          }
        }
{% endif %}
      {{ k.of }}(patch, y, weight, bias, rows, fan_in, 1, {% if k.y == "f32" %}scale{% else %}m, shift, zero{% endif %});
    }
}
