"""Loading and saving models, and the sentences about what cannot be loaded."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import configs
from support.tiny import SMALL, make_model
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, GPT2Config, PreTrainedModel

from toolkit.compress.model import (
    check_task,
    input_names,
    load_checkpoint,
    load_model,
    load_tokenizer,
    save_checkpoint,
)
from toolkit.config import ModelConfig, TaskConfig, Weights
from toolkit.errors import InputError, UsageError
from toolkit.tasks import KINDS

DEMO = ModelConfig(
    name="demo",
    path=None,
    weights=Weights.random,
    config={"model_type": "bert", **{k: v for k, v in SMALL.items() if k != "vocab_size"}},
    freeze_embeddings=False,
)


def task(kind: str = "text_classification", **changes: Any) -> TaskConfig:
    return replace(configs.task("demo"), kind=kind, **{"max_length": 16} | changes)


def local(path: Path | str) -> ModelConfig:
    return ModelConfig(
        name="local", path=str(path), weights=Weights.pretrained, config={}, freeze_embeddings=False
    )


def load_model_of(model: ModelConfig) -> PreTrainedModel:
    return load_model(model, task(), load_tokenizer(DEMO))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    tokenizer = load_tokenizer(DEMO)
    save_checkpoint(tmp_path / "checkpoint", load_model(DEMO, task(), tokenizer), tokenizer)
    return tmp_path / "checkpoint"


def test_made_from_config(checkpoint: Path) -> None:
    """The vocabulary is the tokenizer's; the folder is a plain one."""
    names = {path.name for path in checkpoint.iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["vocab_size"] == len(tokenizer)
    assert tokenizer("the soup", "was good").token_type_ids == [0, 0, 0, 0, 1, 1, 1]
    assert not list(checkpoint.parent.glob(".*"))


def test_random_weights_at_a_path(checkpoint: Path) -> None:
    again = ModelConfig(
        name="x", path=str(checkpoint), weights=Weights.random, config={}, freeze_embeddings=False
    )
    model = load_model(again, task(num_labels=5), load_tokenizer(again))
    assert model.config.num_labels == 5
    assert model.config.hidden_size == SMALL["hidden_size"]


def test_body_of_another_task(checkpoint: Path, tmp_path: Path) -> None:
    """Pretraining checkpoints lack head and pooler: these are new, all else is theirs."""
    sizes: dict[str, Any] = SMALL | {"vocab_size": len(load_tokenizer(DEMO))}
    config = BertConfig(**sizes)
    pretrained = BertForMaskedLM(config)
    save_checkpoint(tmp_path / "mlm", pretrained, load_tokenizer(DEMO))
    for kind in KINDS:
        model: Any = load_model(local(tmp_path / "mlm"), task(kind), load_tokenizer(DEMO))
        theirs = pretrained.bert.encoder.state_dict()
        ours = model.base_model.encoder.state_dict()
        assert all(torch.equal(value, ours[name]) for name, value in theirs.items())


def test_not_found(tmp_path: Path) -> None:
    for load in (load_tokenizer, load_model_of):
        with pytest.raises(InputError, match="there is no such folder"):
            load(local(tmp_path / "nowhere"))
        with pytest.raises(InputError, match=r"has no config\.json"):
            load(local(tmp_path))


def test_no_weights_wanted_from_nowhere() -> None:
    nowhere = ModelConfig(
        name="x", path=None, weights=Weights.pretrained, config={}, freeze_embeddings=False
    )
    with pytest.raises(UsageError, match=r"needs model\.path"):
        load_model(nowhere, task(), load_tokenizer(DEMO))


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"cannot load the tokenizer of no-one/no-model from the"):
        load_tokenizer(local("no-one/no-model"))
    with pytest.raises(InputError, match="name a local folder with model=local"):
        load_model(local("no-one/no-model"), task(), load_tokenizer(DEMO))


def test_other_architectures(checkpoint: Path, tmp_path: Path) -> None:
    GPT2Config(n_layer=1).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(InputError, match="is a gpt2 model, but this toolkit takes encoders"):
        load_model(local(tmp_path / "gpt2"), task(), load_tokenizer(DEMO))
    config = json.loads((checkpoint / "config.json").read_text()) | {"is_decoder": True}
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="is a bert decoder model"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b'{"model_type": "no-such"}'),
        ("model.safetensors", b"short"),
        ("tokenizer.json", b"{"),
    ],
)
def test_damaged_files(checkpoint: Path, file: str, content: bytes) -> None:
    (checkpoint / file).write_bytes(content)
    load = load_tokenizer if file == "tokenizer.json" else load_model_of
    with pytest.raises(InputError, match=r"cannot read the \w+ in .*: the checkpoint is damaged"):
        load(local(checkpoint))


def test_missing_weights(checkpoint: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    del weights["bert.encoder.layer.1.output.dense.weight"]
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 weights .* bert\.encoder\.layer\.1\.output"):
        load_model(local(checkpoint), task(), load_tokenizer(DEMO))


def test_checkpoint_of_another_task(checkpoint: Path) -> None:
    model = load_checkpoint(checkpoint)
    check_task(model, "here", task())
    with pytest.raises(InputError, match="holds a BertForSequenceClassification, but task=demo"):
        check_task(model, "here", task("question_answering"))


def test_max_length() -> None:
    with pytest.raises(UsageError, match=r"task\.max_length must be at most 24"):
        load_model(DEMO, task(max_length=25), load_tokenizer(DEMO))
    roberta = ModelConfig(**vars(DEMO) | {"config": DEMO.config | {"model_type": "roberta"}})
    with pytest.raises(UsageError, match=r"task\.max_length must be at most 23"):
        load_model(roberta, task(max_length=24), load_tokenizer(DEMO))


def test_input_names() -> None:
    with_types = ["input_ids", "attention_mask", "token_type_ids"]
    assert input_names(make_model("bert")) == with_types
    assert input_names(make_model("distilbert")) == with_types[:2]
    assert input_names(make_model("roberta", type_vocab_size=1)) == with_types[:2]


def test_unknown_architecture_in_config() -> None:
    unknown = ModelConfig(**vars(DEMO) | {"config": {"model_type": "perceptron"}})
    with pytest.raises(UsageError, match=r"model\.config is not a transformers configuration"):
        load_model(unknown, task(), load_tokenizer(DEMO))


def test_failed_save_leaves_nothing(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = make_model(), load_tokenizer(DEMO)

    def fail(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tokenizer, "save_pretrained", fail)
    before = (checkpoint / "model.safetensors").read_bytes()
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(checkpoint, model, tokenizer)
    assert (checkpoint / "model.safetensors").read_bytes() == before
    assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint"]
