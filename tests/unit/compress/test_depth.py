"""Which layers stay, and that what is left is an ordinary model."""

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny import FAMILIES, make_model
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from toolkit.compress.depth import drop_layers, encoder_layers, kept_layers
from toolkit.config import DepthConfig
from toolkit.errors import UsageError


def depth(
    num_layers: int | None = None, keep: list[int] | None = None, drop: list[int] | None = None
) -> DepthConfig:
    return DepthConfig(name="test", num_layers=num_layers, keep=keep, drop=drop)


def test_published_lists() -> None:
    assert kept_layers(12, depth(6)) == [0, 2, 4, 6, 8, 11]
    assert kept_layers(12, depth(3)) == [0, 6, 11]
    assert kept_layers(12, depth(9)) == [0, 1, 3, 4, 6, 7, 9, 10, 11]
    assert kept_layers(12, depth(12)) == list(range(12))
    assert kept_layers(12, depth()) == list(range(12))
    assert kept_layers(6, depth(3)) == [0, 3, 5]
    assert kept_layers(6, depth(1)) == [0]


@given(st.integers(2, 48).flatmap(lambda n: st.tuples(st.just(n), st.integers(2, n))))
def test_spacing_is_even(layers: tuple[int, int]) -> None:
    n, k = layers
    keep = kept_layers(n, depth(k))
    gaps = [after - before for before, after in itertools.pairwise(keep)]
    assert (len(keep), keep[0], keep[-1]) == (k, 0, n - 1)
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 2  # the last may be one longer than the longest other


def test_keep_overrides() -> None:
    assert kept_layers(12, depth(3, keep=[1, 2])) == [1, 2]
    with pytest.raises(UsageError, match=r"names layer 12, but the model has only 12 layers"):
        kept_layers(12, depth(keep=[0, 12]))


def test_drop_is_what_keep_leaves() -> None:
    assert kept_layers(12, depth(drop=[1, 3, 5, 7, 9, 10])) == kept_layers(12, depth(6))
    with pytest.raises(UsageError, match=r"depth.drop=\[1, 12\] names layer 12"):
        kept_layers(12, depth(drop=[1, 12]))
    with pytest.raises(UsageError, match="names all 2 layers: keep at least one"):
        kept_layers(2, depth(drop=[0, 1]))
    with pytest.raises(ValueError, match="two ways to say the same"):
        depth(keep=[0], drop=[1])


def test_more_layers_than_there_are() -> None:
    with pytest.raises(UsageError, match="keeps 9 layers, but the model has only 6"):
        kept_layers(6, depth(9))


@pytest.mark.parametrize("family", FAMILIES)
def test_dropped_model_is_ordinary(family: str, tmp_path: Path) -> None:
    """Saved and loaded again, it computes what the kept layers compute."""
    model = make_model(family, num_hidden_layers=4).eval()
    ids = torch.randint(5, 40, (2, 7))
    kept = [encoder_layers(model)[number] for number in (0, 2, 3)]

    drop_layers(model, [0, 2, 3])
    assert list(encoder_layers(model)) == kept
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.num_hidden_layers == 3
    assert len(encoder_layers(loaded)) == 3
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=0, atol=0)


def test_layers_run_in_order() -> None:
    config = AutoConfig.for_model("bert", **FAMILIES["bert"] | {"num_hidden_layers": 3})
    model = AutoModel.from_config(config).eval()
    hidden = model(torch.arange(6)[None], output_hidden_states=True).hidden_states
    drop_layers(model, [0, 1])
    last = model(torch.arange(6)[None]).last_hidden_state
    torch.testing.assert_close(last, hidden[2], rtol=0, atol=0)
