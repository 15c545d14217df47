"""The generated task: reproducible, fair, and not to be had from single words."""

from collections import Counter

from toolkit.tasks import demo


def test_seeds() -> None:
    train = demo.generate_examples("train", 1, 50)
    assert train == demo.generate_examples("train", 1, 200)[:50]
    assert train != demo.generate_examples("train", 2, 50)
    evaluation = demo.generate_examples("eval", 1)
    assert evaluation == demo.generate_examples("eval", 2)
    assert len(evaluation) == demo.EVAL_EXAMPLES
    seen = {example["text"] for example in demo.generate_examples("train", 1)}
    assert sum(example["text"] in seen for example in evaluation) < 0.2 * len(evaluation)


def test_labels_follow_the_rule() -> None:
    """Recomputed from the text: adjective, turned by `not` or `never`, turned by a liar."""
    for example in demo.generate_examples("eval", 0):
        votes = 0
        clause: list[str] = []
        for word in [*example["text"].split(), "and"]:
            if word not in demo.CONJUNCTIONS:
                clause.append(word)
                continue
            is_good = any(word in demo.GOOD for word in clause)
            assert is_good != any(word in demo.BAD for word in clause)
            turns = sum(word in ("not", "never") for word in clause)
            turns += sum(word in demo.LIARS for word in clause)
            votes += 1 if is_good != (turns % 2 == 1) else -1
            clause = []
        assert example["label"] == int(votes > 0)


def test_words_alone_are_not_enough() -> None:
    examples = demo.generate_examples("eval", 0)
    labels = Counter(example["label"] for example in examples)
    assert 0.45 < labels[1] / len(examples) < 0.55
    right = 0
    for example in examples:
        words = example["text"].split()
        good = sum(word in demo.GOOD for word in words)
        right += int(good > sum(word in demo.BAD for word in words)) == example["label"]
    assert right / len(examples) < 0.85


def test_tokenizer_knows_its_words() -> None:
    tokenizer = demo.make_tokenizer()
    for example in demo.generate_examples("eval", 0, 100):
        tokens = tokenizer.encode(example["text"]).tokens
        assert tokens == ["[CLS]", *example["text"].split(), "[SEP]"]
    pair = tokenizer.encode("Xylo 7!", "the soup")
    assert pair.tokens == (
        ["[CLS]", "x", "##y", "##l", "##o", "7", "!", "[SEP]", "the", "soup", "[SEP]"]
    )
    assert pair.type_ids == [0] * 8 + [1] * 3
    assert tokenizer.decode(pair.ids) == "xylo 7! the soup"
