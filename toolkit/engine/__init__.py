"""The sparse engine: ONNX file → plan → packed weights → kernels. Imports neither torch nor transformers."""

from toolkit.engine.engine import Engine

__all__ = ["Engine"]
