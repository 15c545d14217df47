"""The embedded default task: generated restaurant reviews, and a tokenizer for them.

A review judges several things, one clause each, and the label says whether most of them are good.
To get it right a model must know the adjectives and find what turns each of them round: `not` or
`never` before it, and being said by somebody known to lie. Words alone take it to
about 80 %; combining them is what depth and density are needed for.
"""

import random
import string
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

TRAIN_EXAMPLES = 20_000
EVAL_EXAMPLES = 1_000
EVAL_SEED = 0  # one evaluation set for every run, whatever its seed
CLAUSES = (1, 3)  # odd, so that there is a majority
NEGATION = 0.25  # fraction of clauses with `not` or `never`
REPORTED = 0.25  # fraction of clauses put in somebody's mouth


def _words(text: str) -> list[str]:
    return text.split()


NOUNS = _words(
    "soup bread pasta salad fish dessert waiter cook host barman cashier porter "
    "room garden table chair terrace kitchen bill tip wine menu coffee tea "
    "street harbour tower park bridge river music band piano radio singer crowd"
)
GOOD = _words(
    "good fine great lovely nice pleasant charming splendid superb perfect decent fair "
    "delightful brilliant excellent wonderful"
)
BAD = _words(
    "bad poor awful dreadful nasty horrid dull gloomy terrible rotten shabby unfair "
    "dismal lousy wretched miserable"
)
HONEST = _words("anna ben clara david emma frank")
LIARS = _words("gina hugo irene jack kate liam")
FILLERS = _words("really quite rather truly very so")
CONJUNCTIONS = _words("and but while")
FUNCTION_WORDS = _words("the was is not never says said")


def generate_examples(split: str, seed: int, limit: int | None = None) -> list[dict[str, Any]]:
    """Write reviews, half of them good ones.

    Args:
        split: `train`: 20,000 reviews drawn with `seed`; `eval`: the same 1,000 always.
        seed: Ignored for `eval`.
        limit: Only the first so many.

    Returns:
        Examples of text classification: `text`, `text_pair` (None), `label` (1 good, 0 bad).
    """
    count = TRAIN_EXAMPLES if split == "train" else EVAL_EXAMPLES
    # A string seeds both splits apart, and the same on every machine and Python version.
    generator = random.Random(f"{split} {seed if split == 'train' else EVAL_SEED}")
    return [_review(generator) for _ in range(count if limit is None else min(count, limit))]


def make_tokenizer() -> Tokenizer:
    """Make the WordPiece tokenizer of the demo: its words, and single characters for all others."""
    words = [*NOUNS, *GOOD, *BAD, *HONEST, *LIARS, *FILLERS, *CONJUNCTIONS, *FUNCTION_WORDS]
    letters = [*string.ascii_lowercase, *string.digits]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    tokens += [*(f"##{letter}" for letter in letters), *string.punctuation, *words]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(tokens[:5])
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
    )
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _review(generator: random.Random) -> dict[str, Any]:
    nouns = generator.sample(NOUNS, generator.choice(CLAUSES))
    judgements = [_clause(generator, noun) for noun in nouns]
    text = judgements[0][0]
    for clause, _ in judgements[1:]:
        text += f" {generator.choice(CONJUNCTIONS)} {clause}"
    label = int(2 * sum(is_good for _, is_good in judgements) > len(judgements))
    return {"text": text, "text_pair": None, "label": label}


def _clause(generator: random.Random, noun: str) -> tuple[str, bool]:
    is_good = generator.random() < 0.5
    words = ["the", noun, generator.choice(["was", "is"])]
    adjective = generator.choice(GOOD if is_good else BAD)
    if generator.random() < NEGATION:
        words.append(generator.choice(["not", "never"]))
        is_good = not is_good
    if generator.random() < 0.5:
        words.append(generator.choice(FILLERS))
    words.append(adjective)
    if generator.random() < REPORTED:
        is_liar = generator.random() < 0.5
        speaker = generator.choice(LIARS if is_liar else HONEST)
        words += [generator.choice(["says", "said"]), speaker]
        is_good = is_good != is_liar
    return " ".join(words), is_good
