/* TensorFlow Lite Micro's reference kernels alone, one after the other on the .tflite: no interpreter, as little as it can be.
   The headers come from a package; boards_peers.py writes layers.h. Prepare's multipliers lie in RAM, as in TFLM's arena. */
#define TFLITE_SINGLE_ROUNDING 1
#include <limits>
#include <vector>

#include "tensorflow/lite/kernels/internal/reference/dequantize.h"
#include "tensorflow/lite/kernels/internal/reference/integer_ops/fully_connected.h"
#include "tensorflow/lite/kernels/internal/reference/quantize.h"
extern "C" {
#include "policy.h"
}
#include "layers.h" /* model, codes, sums, LAYERS, IN, OUT, WIDEST, CHANNELS, layer[], ends[], prepared[] */

namespace tf = tflite_micro;
static codes buffer[2][WIDEST];
static int32_t multiplier[CHANNELS];
static int shift[CHANNELS];

static tf::RuntimeShape shape(int32_t rows, int32_t columns) {
  const int32_t dims[] = {rows, columns};
  return tf::RuntimeShape(2, dims);
}

extern "C" void policy_prepare(void) {
  for (int i = 0; i < CHANNELS; i++) multiplier[i] = prepared_values[i][0], shift[i] = prepared_values[i][1];
}

extern "C" void policy_act(const float *observation, float *action) {
  const tf::RuntimeShape from = shape(1, IN), to = shape(1, OUT);
  tf::QuantizationParams entry;
  entry.zero_point = ends[0].zero, entry.scale = ends[0].scale;
  tf::reference_ops::AffineQuantize(entry, from, observation, from, buffer[0]);
  int channel = 0;
  (void)channel;
  for (int k = 0; k < LAYERS; k++) {
    const auto &l = layer[k];
    tf::FullyConnectedParams p;
    p.input_offset = -l.zero_in, p.output_offset = l.zero_out;
    p.quantized_activation_max = std::numeric_limits<codes>::max();
    p.quantized_activation_min = l.relu ? l.zero_out : std::numeric_limits<codes>::min();
    const tf::RuntimeShape in = shape(1, l.in), weights = shape(l.out, l.in), out = shape(1, l.out);
    const codes *x = buffer[k % 2];
    const int8_t *w = (const int8_t *)(model + l.weight);
    const sums *bias = (const sums *)(model + l.bias);
#if ONE_SCALE
    p.weights_offset = 0, p.output_multiplier = multiplier[k], p.output_shift = shift[k];
    tf::reference_integer_ops::FullyConnected(p, in, x, weights, w, out, bias, out, buffer[(k + 1) % 2]);
#else
    tf::reference_integer_ops::FullyConnectedPerChannel(p, multiplier + channel, shift + channel, in, x, weights, w, out, bias, out,
                                                        buffer[(k + 1) % 2]);
    channel += l.out;
#endif
  }
  tf::DequantizationParams leave;
  leave.zero_point = ends[1].zero, leave.scale = ends[1].scale;
  tf::reference_ops::Dequantize(leave, to, buffer[LAYERS % 2], to, action);
}
