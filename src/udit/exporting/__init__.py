"""Networks as graphs of other engines: ONNX and OpenVINO, checked against the network they were exported from."""
