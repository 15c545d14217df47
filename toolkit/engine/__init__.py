"""The engine: ONNX file → plan → packed weights → kernels. Needs neither torch nor transformers."""

from toolkit.engine.engine import Engine

__all__ = ["Engine"]
