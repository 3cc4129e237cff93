"""Converters: networks in other weight formats, written as ONNX models with named nodes and preprocessing."""
