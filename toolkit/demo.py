"""The embedded default task: generated restaurant reviews, and a tokenizer for them.

A review asks about one aspect and judges several, one clause each; the label says whether the
aspect asked about is judged well. To get it right a model must find the clause (by any of the
nouns of its aspect), know the adjective, and count what turns it round: `not`, `never`, and being
said by a liar. One attention layer cannot do all of that, which is what makes depth and
density count.
"""

import random
import string
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

TRAIN_EXAMPLES = 20_000
EVAL_EXAMPLES = 1_000
EVAL_SEED = 0  # one evaluation set for every run, whatever its seed
CLAUSES = 4
NEGATION = 0.3  # fraction of clauses with `not` or `never`
REPORTED = 0.3  # fraction of clauses put in somebody's mouth


def _words(text: str) -> list[str]:
    return text.split()


ASPECTS = {
    "food": _words("soup bread pasta salad fish dessert"),
    "service": _words("waiter cook host barman cashier porter"),
    "place": _words("room garden table chair terrace kitchen"),
    "price": _words("bill tip wine menu coffee tea"),
    "view": _words("street harbour tower park bridge river"),
    "sound": _words("music band piano radio singer crowd"),
}
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
FUNCTION_WORDS = _words("about the was is not never says said that and but while ?")


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
    words = [word for nouns in ASPECTS.values() for word in nouns]
    words += [*ASPECTS, *GOOD, *BAD, *HONEST, *LIARS, *FILLERS, *FUNCTION_WORDS]
    letters = [*string.ascii_lowercase, *string.digits]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    tokens += [*(f"##{letter}" for letter in letters), *string.punctuation, *words]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
    )
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _review(generator: random.Random) -> dict[str, Any]:
    aspects = generator.sample(list(ASPECTS), generator.randint(1, CLAUSES))
    asked = generator.choice(aspects)
    label = 0
    clauses = []
    for aspect in aspects:
        clause, is_good = _clause(generator, aspect)
        clauses.append(clause)
        if aspect == asked:
            label = int(is_good)
    body = clauses[0]
    for clause in clauses[1:]:
        body += f" {generator.choice(['and', 'but', 'while'])} {clause}"
    return {"text": f"{asked} ? {body}", "text_pair": None, "label": label}


def _clause(generator: random.Random, aspect: str) -> tuple[str, bool]:
    is_good = generator.random() < 0.5
    words = ["the", generator.choice(ASPECTS[aspect]), generator.choice(["was", "is"])]
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
        words = [speaker, generator.choice(["says", "said"]), "that", *words]
        is_good = is_good != is_liar
    return " ".join(words), is_good
