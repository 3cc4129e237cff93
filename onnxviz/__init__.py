"""onnxviz: what every channel of a convolutional network responds to, from its ONNX file alone."""
