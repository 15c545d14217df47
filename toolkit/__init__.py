"""Make a BERT small, then run it faster on a CPU."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolkit.huggingface.models import (
        SparseModelForFeatureExtraction,
        SparseModelForMaskedLM,
        SparseModelForQuestionAnswering,
        SparseModelForSequenceClassification,
        SparseModelForTokenClassification,
    )
    from toolkit.huggingface.question_answering import QuestionAnsweringPipeline

__all__ = [
    "QuestionAnsweringPipeline",
    "SparseModelForFeatureExtraction",
    "SparseModelForMaskedLM",
    "SparseModelForQuestionAnswering",
    "SparseModelForSequenceClassification",
    "SparseModelForTokenClassification",
]

__version__ = version("toolkit")


def __getattr__(name: str) -> Any:
    """Import a class when it is asked for: `import toolkit` itself needs no torch."""
    if name not in __all__:
        raise AttributeError(f"module 'toolkit' has no attribute {name!r}")
    room = "question_answering" if name == "QuestionAnsweringPipeline" else "models"
    return getattr(import_module(f"toolkit.huggingface.{room}"), name)
