"""Random ONNX networks as exporters write policies (sample), and what fewbit makes of them (verdict, minimise)."""
