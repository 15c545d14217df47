"""The text routes through the clients that people have, against the engine asked directly."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import InferenceClient
from numpy.typing import NDArray
from openai import OpenAI, UnprocessableEntityError
from support.serving import MAX_TOKENS, get, post, serving

from toolkit.engine import Engine
from toolkit.huggingface.question_answering import QuestionAnsweringPipeline
from toolkit.tasks.features import load_tokenizer

TEXTS = ["the soup was good", "the waiter said never", "bread and wine and coffee and tea"]
Served = Callable[[str], str]
Exports = Callable[[str], Path]


def run(folder: Path, text: str | tuple[str, str]) -> dict[str, NDArray[Any]]:
    """Outputs of the engine for one text."""
    engine, tokenizer = Engine.load(folder, num_threads=1), load_tokenizer(folder)
    encoding = tokenizer.encode(*((text,) if isinstance(text, str) else text))
    values = {
        "input_ids": encoding.ids,
        "attention_mask": encoding.attention_mask,
        "token_type_ids": encoding.type_ids,
    }
    found = engine.run({name: np.array([values[name]]) for name in engine.inputs})
    return {name: array[0] for name, array in found.items()}


def embedding(folder: Path, text: str) -> NDArray[Any]:
    vector = run(folder, text)["last_hidden_state"].mean(axis=0)
    return np.asarray(vector / np.linalg.norm(vector))


def test_the_hub_client_embeds(served: Served, exports: Exports) -> None:
    client = InferenceClient(served("embedding"))
    found = client.feature_extraction(TEXTS)
    expected = [embedding(exports("embedding"), text) for text in TEXTS]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    raw = client.feature_extraction(TEXTS[0], normalize=False, truncate=True)
    hidden = run(exports("embedding"), TEXTS[0])["last_hidden_state"]
    np.testing.assert_allclose(raw, hidden.mean(axis=0)[None], atol=1e-5)
    similar = client.sentence_similarity(
        TEXTS[0], TEXTS[1:], model=f"{served('embedding')}/similarity"
    )
    np.testing.assert_allclose(similar, np.array(expected[1:]) @ expected[0], atol=1e-5)


def test_openais_client_embeds(served: Served, exports: Exports) -> None:
    client = OpenAI(base_url=f"{served('embedding')}/v1", api_key="none", max_retries=0)
    answer = client.embeddings.create(model="any", input=TEXTS)  # asks for base64
    expected = np.array([embedding(exports("embedding"), text) for text in TEXTS])
    assert [row.index for row in answer.data] == [0, 1, 2]
    np.testing.assert_allclose([row.embedding for row in answer.data], expected, atol=1e-5)
    tokenizer = load_tokenizer(exports("embedding"))
    assert answer.usage.prompt_tokens == sum(len(tokenizer.encode(text)) for text in TEXTS)
    short = client.embeddings.create(
        model="any", input=TEXTS[0], dimensions=4, encoding_format="float"
    )
    cut = expected[0, :4] / np.linalg.norm(expected[0, :4])
    np.testing.assert_allclose(short.data[0].embedding, cut, atol=1e-5)
    with pytest.raises(UnprocessableEntityError, match=r"`dimensions` must be in \[1, 16\]"):
        client.embeddings.create(model="any", input=TEXTS[0], dimensions=17)


def test_hidden_states_and_token_ids(served: Served, exports: Exports) -> None:
    status, found = post(f"{served('embedding')}/embed_all", {"inputs": TEXTS})
    assert status == 200
    for text, rows in zip(TEXTS, found, strict=True):
        hidden = run(exports("embedding"), text)["last_hidden_state"]
        np.testing.assert_allclose(rows, hidden, atol=1e-5)
    ids = load_tokenizer(exports("embedding")).encode(TEXTS[0]).ids
    as_ids = post(f"{served('embedding')}/embed", {"inputs": [ids, TEXTS[0]]})[1]
    assert as_ids[0] == as_ids[1]
    assert post(f"{served('embedding')}/embed", {"inputs": ids})[1] == [as_ids[0]]


def test_pooling_prompts_and_lengths_come_from_the_files(exports: Exports, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    for file in exports("embedding").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text('{"pooling_mode": "cls"}')
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 12}')
    prompts = {"prompts": {"query": "the bread "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    with serving(folder, model_name="mine") as url:
        info = json.loads(get(f"{url}/info")[1])
        assert info["model_id"] == "mine"
        assert info["model_type"] == {"embedding": {"pooling": "cls"}}
        assert info["max_input_length"] == 12
        body = {"inputs": "was good", "prompt_name": "query", "normalize": False}
        first = run(folder, "the bread was good")["last_hidden_state"][0]
        np.testing.assert_allclose(post(f"{url}/embed", body)[1], [first], atol=1e-5)
        unknown = post(f"{url}/embed", body | {"prompt_name": "passage"})
        assert unknown == (422, {"error": "no such `prompt_name`: the model has query",
                                 "error_type": "Validation"})  # fmt: skip
    with serving(folder, pooling="mean") as url:
        np.testing.assert_allclose(
            post(f"{url}/embed", {"inputs": TEXTS[0]})[1], [embedding(folder, TEXTS[0])], atol=1e-5
        )


def test_long_texts_are_refused_or_cut_on_the_side_asked_for(served: Served) -> None:
    url = f"{served('embedding')}/embed"
    words = ["soup"] * 40 + ["bread"] * 40
    refused = post(url, {"inputs": " ".join(words)})
    assert refused[0] == 413
    assert refused[1]["error"] == f"`inputs` must have at most {MAX_TOKENS} tokens. Given: 82"
    room = MAX_TOKENS - 2
    for side, kept in (("right", words[:room]), ("Left", words[-room:])):
        cut = {"inputs": " ".join(words), "truncate": True, "truncation_direction": side}
        assert post(url, cut) == post(url, {"inputs": " ".join(kept)})


def test_the_hub_client_classifies_with_the_models_labels(served: Served, exports: Exports) -> None:
    client = InferenceClient(served("classifier"))
    found: Any = client.text_classification(TEXTS[0])
    logits = run(exports("classifier"), TEXTS[0])["logits"]
    expected = np.exp(logits) / np.exp(logits).sum()
    assert [one.label for one in found] == [
        ["bad", "fair", "good"][i] for i in np.argsort(-expected)
    ]
    np.testing.assert_allclose([one.score for one in found], np.sort(expected)[::-1], atol=1e-6)
    best: Any = client.text_classification(TEXTS[0], top_k=1, function_to_apply="none")
    assert [one.score for one in best] == [pytest.approx(logits.max(), abs=1e-5)]


def test_predict_takes_texts_and_pairs(served: Served, exports: Exports) -> None:
    url = f"{served('classifier')}/predict"
    one = post(url, {"inputs": TEXTS[0], "raw_scores": True})[1]
    scores = {entry["label"]: entry["score"] for entry in one}
    logits = run(exports("classifier"), TEXTS[0])["logits"]
    np.testing.assert_allclose(
        [scores[name] for name in ("bad", "fair", "good")], logits, atol=1e-5
    )
    pair = post(url, {"inputs": [TEXTS[0], TEXTS[1]], "raw_scores": True})[1]
    paired = run(exports("classifier"), (TEXTS[0], TEXTS[1]))["logits"]
    assert pair[0]["score"] == pytest.approx(paired.max(), abs=1e-5)
    batch = {"inputs": [[TEXTS[0]], [TEXTS[0], TEXTS[1]]], "raw_scores": True}
    assert post(url, batch)[1] == [one, pair]
    assert post(served("classifier"), {"inputs": TEXTS[0], "raw_scores": True})[1] == one


def test_rerank_sorts_texts_by_their_score(served: Served, exports: Exports) -> None:
    url = f"{served('reranker')}/rerank"
    found = post(url, {"query": "what is good", "texts": TEXTS, "raw_scores": True})[1]
    logits = [run(exports("reranker"), ("what is good", text))["logits"][0] for text in TEXTS]
    assert [rank["index"] for rank in found] == list(np.argsort(logits)[::-1])
    np.testing.assert_allclose([r["score"] for r in found], np.sort(logits)[::-1], atol=1e-5)
    soft = post(url, {"query": "what is good", "texts": TEXTS, "return_text": True})[1]
    assert soft[0]["text"] == TEXTS[found[0]["index"]]
    np.testing.assert_allclose(
        [r["score"] for r in soft], 1 / (1 + np.exp(-np.sort(logits)[::-1])), atol=1e-6
    )


def test_the_hub_client_answers_questions(served: Served, exports: Exports) -> None:
    client = InferenceClient(served("question_answering"))
    context = " and ".join(TEXTS * 8)  # several windows
    assert len(load_tokenizer(exports("question_answering")).encode(context)) > 2 * MAX_TOKENS
    found: Any = client.question_answering(question="what was good", context=context, top_k=3)
    pipeline = QuestionAnsweringPipeline(str(exports("question_answering")), num_threads=1)
    stride = MAX_TOKENS // 4
    expected = pipeline(question="what was good", context=context, top_k=3, doc_stride=stride)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.answer, ours.start, ours.end) == (
            theirs["answer"],
            theirs["start"],
            theirs["end"],
        )
        assert ours.score == pytest.approx(theirs["score"], rel=1e-4)
    one: Any = client.question_answering(question="what was good", context=TEXTS[0])
    assert TEXTS[0][one.start : one.end] == one.answer
    long = post(f"{served('question_answering')}/answer",
                {"inputs": {"question": "soup " * 80, "context": "bread"}})  # fmt: skip
    assert long[0] == 413


def test_the_hub_client_tags(served: Served, exports: Exports) -> None:
    client = InferenceClient(served("token_classifier"))
    found = client.token_classification(TEXTS[2], aggregation_strategy="none", ignore_labels=[])
    logits = run(exports("token_classifier"), TEXTS[2])["logits"]
    labels = [["O", "B-FOOD", "I-FOOD"][i] for i in logits.argmax(axis=1)[1:-1]]
    assert [tag.entity for tag in found] == labels
    assert [tag.word for tag in found] == TEXTS[2].split()
    groups = client.token_classification(TEXTS[2])
    assert {tag.entity_group for tag in groups} <= {"FOOD"}
    assert len(groups) == sum(
        label != "O" and (i == 0 or label == "B-FOOD" or labels[i - 1] == "O")
        for i, label in enumerate(labels)
    )
    batch = post(f"{served('token_classifier')}/tags", {"inputs": [TEXTS[2], TEXTS[0]]})[1]
    assert len(batch[0]) == len(groups)


def test_tokens_there_and_back(served: Served) -> None:
    url = served("embedding")
    (tokens,) = post(f"{url}/tokenize", {"inputs": "the soupy"})[1]
    assert [token["special"] for token in tokens][:: len(tokens) - 1] == [True, True]
    assert tokens[1]["text"] == "the"
    ids = [token["id"] for token in tokens]
    assert post(f"{url}/decode", {"ids": ids})[1] == ["the soupy"]
    bare = post(f"{url}/tokenize", {"inputs": ["the soupy"], "add_special_tokens": False})[1]
    assert [token["id"] for token in bare[0]] == ids[1:-1]
    assert post(f"{url}/decode", {"ids": [-1]})[0] == 422


@pytest.mark.parametrize(
    ("kind", "path", "body", "status"),
    [
        ("embedding", "/predict", {"inputs": "a"}, 424),
        ("embedding", "/rerank", {"query": "a", "texts": ["b"]}, 424),
        ("classifier", "/rerank", {"query": "a", "texts": ["b"]}, 424),
        ("classifier", "/embed", {"inputs": "a"}, 424),
        ("embedding", "/embed", {"inputs": []}, 422),
        ("embedding", "/embed", {}, 422),
        ("embedding", "/embed", {"inputs": {"a": "SECRET"}}, 422),
        ("embedding", "/embed", {"inputs": ["SECRET"] * 33}, 413),
        ("embedding", "/embed", b'{"inputs": "SECRET', 422),
        ("classifier", "/predict", {"inputs": ["a", "b", "SECRET"]}, 422),
        ("classifier", "/predict", {"inputs": "a", "parameters": {"nonsense": 1}}, 422),
        ("embedding", "/nowhere", {"inputs": "a"}, 404),
    ],
)
def test_errors_are_of_one_form_and_quote_nobody(
    served: Served, kind: str, path: str, body: Any, status: int
) -> None:
    found, answer = post(served(kind) + path, body)
    assert found == status
    assert set(answer) == {"error", "error_type"}
    assert answer["error"]
    assert "SECRET" not in json.dumps(answer)


def test_openais_errors_have_a_form_of_their_own(served: Served) -> None:
    status, answer = post(f"{served('classifier')}/v1/embeddings", {"input": "a"})
    assert status == 424
    assert answer["code"] == 424
    assert answer["type"] == "Backend"
    assert answer["error"]["message"] == answer["message"]


def test_health_and_metrics(served: Served) -> None:
    url = served("embedding")
    post(f"{url}/embed", {"inputs": TEXTS})
    assert get(f"{url}/health") == (200, "")
    found = get(f"{url}/metrics")[1]
    assert 'te_request_success_total{method="/embed"}' in found
    assert "te_batch_next_size_count" in found
    assert "te_queue_size 0.0" in found


def test_base64_is_the_float32_numbers(served: Served) -> None:
    url = f"{served('embedding')}/v1/embeddings"
    spelled = post(url, {"input": TEXTS[0], "encoding_format": "base64"})[1]["data"][0]["embedding"]
    numbers = post(url, {"input": TEXTS[0]})[1]["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(spelled), "<f4").tolist() == np.float32(numbers).tolist()
