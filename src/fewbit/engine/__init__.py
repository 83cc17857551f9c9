"""Run a quantized graph: lower it once to a flat program, then walk it."""
