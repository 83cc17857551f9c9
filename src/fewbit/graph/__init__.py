"""One network as one ONNX graph: read, straighten, calibrate, write with QuantizeLinear and DequantizeLinear."""
