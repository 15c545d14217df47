"""ONNX file in, plan out."""
