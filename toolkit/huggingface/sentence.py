"""The first module of a SentenceTransformer or CrossEncoder, on the sparse engine."""

from typing import Any

from sentence_transformers.base.modules import Transformer

from toolkit.huggingface.models import (
    SparseModel,
    SparseModelForFeatureExtraction,
    SparseModelForMaskedLM,
    SparseModelForSequenceClassification,
)

CLASSES: dict[str, type[SparseModel]] = {
    "feature-extraction": SparseModelForFeatureExtraction,
    "fill-mask": SparseModelForMaskedLM,
    "sequence-classification": SparseModelForSequenceClassification,
}


class SparseTransformer(Transformer):
    """The library's own `Transformer` - texts, prompts, pairs, lengths - with another model in it.

    `modules.json` of an export names this class. What `model_kwargs` of a SentenceTransformer or
    CrossEncoder holds goes to `from_pretrained`: `model_kwargs={"num_threads": 2}`.
    """

    def _load_model(
        self,
        model_name_or_path: str,
        transformer_task: str,
        config: Any,
        backend: str,
        is_peft_model: bool,
        **model_kwargs: Any,
    ) -> Any:
        if backend != "torch" or transformer_task not in CLASSES:  # torch is the library's default
            raise ValueError(
                f"an export runs on the sparse engine alone and for {', '.join(CLASSES)}; got "
                f"backend={backend!r} and the task {transformer_task!r}"
            )
        kept = {
            name: value
            for name, value in model_kwargs.items()
            if name not in ("subfolder", "trust_remote_code")
        }
        return CLASSES[transformer_task].from_pretrained(model_name_or_path, **kept)
