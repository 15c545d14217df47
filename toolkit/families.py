"""Facts on BERT and its relatives: which there are, and where they differ. Imports no torch."""

# Encoders with post-norm layers of six linear weights each, which is what pruning, export and the
# sparse engine know; by their `model_type`. MiniLM is a BERT.
FAMILIES = ("bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")
POSITIONS_BEHIND_PADDING = ("camembert", "roberta", "xlm-roberta")
# The linear weights of an encoder layer: what is pruned, by the names the engine has for them.
LINEARS = ("query", "key", "value", "attention_output", "intermediate", "output")
MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def longest_text(model_type: str, max_position_embeddings: int, pad_token_id: int | None) -> int:
    """Return the tokens of the longest text that a model has positions for.

    RoBERTa's positions, and those of its kin, start behind the id of the padding token.
    """
    if model_type in POSITIONS_BEHIND_PADDING:
        return max_position_embeddings - (pad_token_id or 0) - 1
    return max_position_embeddings


def inputs_of(type_vocab_size: int) -> list[str]:
    """Name the inputs that a model takes: DistilBERT and the RoBERTas know no token types."""
    return list(MODEL_INPUTS if type_vocab_size > 1 else MODEL_INPUTS[:2])
