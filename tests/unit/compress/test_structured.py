"""Structured pruning: the order of removal, the choice, what is removed, and the repair."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny import FAMILIES, examples_of, make_model
from torch import nn
from transformers import AutoModelForSequenceClassification

from toolkit.compress.depth import drop_layers, encoder_layers
from toolkit.compress.model import load_checkpoint
from toolkit.compress.structured.calibrate import (
    REPAIRED,
    drawn_loss,
    input_grams,
    output_sensitivities,
    refit,
    repair,
    with_one,
)
from toolkit.compress.structured.choice import choose
from toolkit.compress.structured.order import DAMPING, removal_path
from toolkit.compress.structured.prune import calibration_batches, choose_kept, removal_paths
from toolkit.compress.structured.widths import Kept, linears_of, resize, shrink, widths_of
from toolkit.errors import InputError

HEAD = 8  # features of a head of `make_model`
KEPT = [Kept([1], range(3, 20)), Kept([0, 1], [0, 5])]


def batch_of(count: int = 16) -> list[dict[str, torch.Tensor]]:
    """Make one batch of texts, the second of which is padded."""
    names = ("input_ids", "attention_mask")
    texts = examples_of(count)
    batch = {name: torch.tensor([text[name] for text in texts]) for name in names}
    batch["attention_mask"][1, 5:] = 0
    return [batch]


def logits(model: Any) -> torch.Tensor:
    model.train(False)
    with torch.inference_mode():
        result = model(**batch_of()[0]).logits
    assert isinstance(result, torch.Tensor)
    return result


def least_error(w: Any, x: Any, keep: list[int], penalty: float) -> float:
    """Fit what is kept, and the bias, to `x w` by NumPy's least squares: the objective's value."""
    tokens, columns = x.shape
    a = np.column_stack([x[:, keep], np.ones(tokens)]) / tokens**0.5
    a = np.vstack(
        [a, np.column_stack([penalty**0.5 * np.eye(columns)[:, keep], np.zeros(columns)])]
    )
    b = np.vstack([x / tokens**0.5, penalty**0.5 * np.eye(columns)]) @ w.T
    found = np.linalg.lstsq(a, b, rcond=None)[0]
    return float(((a @ found - b) ** 2).sum())


@pytest.mark.parametrize("unit", [1, 2])
def test_removal_is_greedy_and_its_errors_are_those_of_least_squares(unit: int) -> None:
    rng = np.random.default_rng(0)
    mixed = rng.standard_normal((50, 8)) @ rng.standard_normal((8, 8)) + rng.standard_normal(8)
    w = rng.standard_normal((3, 8))
    x = torch.from_numpy(np.column_stack([mixed, np.ones(50)]))
    gram = x.T @ x / 50
    penalty = DAMPING * float(gram.diagonal()[:-1].mean())
    path = removal_path(torch.from_numpy(w), gram, unit, per_step=1, least=1)
    units = list(range(8 // unit))
    assert sorted(path.order) == units
    assert path.errors[0] == 0.0
    for gone, error in zip(path.order, path.errors[1:], strict=False):
        errors = {}
        for one in units:
            keep = [
                c
                for other in units
                if other != one
                for c in range(other * unit, (other + 1) * unit)
            ]
            errors[one] = least_error(w, mixed, keep, penalty)
        assert gone == min(errors, key=lambda name: errors[name])
        assert error == pytest.approx(errors[gone], rel=1e-6)
        units.remove(gone)
    assert len(path.errors) == 8 // unit


def test_removal_of_several_at_once_ends_at_the_same_least_squares() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((80, 7))
    w = rng.standard_normal((2, 7))
    ones = np.column_stack([x, np.ones(80)])
    gram = torch.from_numpy(ones.T @ ones / 80)
    path = removal_path(torch.from_numpy(w), gram, 1, per_step=3, least=2)
    assert len(path.errors) == 3  # 7 → 4 → 2
    penalty = DAMPING * float(gram.diagonal()[:-1].mean())
    for step, left in ((1, 4), (2, 2)):
        expected = least_error(w, x, sorted(path.order[-left:]), penalty)
        assert path.errors[step] == pytest.approx(expected, rel=1e-6)


def test_choice_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        costs = [rng.integers(1, 50, size=rng.integers(1, 5)) / 10 for _ in range(4)]
        errors = [rng.random(len(cost)) for cost in costs]
        budget = float(rng.integers(30, 150) / 10)
        found = choose(costs, errors, budget)
        options = list(itertools.product(*(range(len(cost)) for cost in costs)))
        # by how much rounding up may hide an option: the test compares with both budgets
        sums = {option: sum(c[i] for c, i in zip(costs, option, strict=True)) for option in options}
        value = {
            option: sum(e[i] for e, i in zip(errors, option, strict=True)) for option in options
        }
        allowed = [option for option in options if sums[option] <= budget + 1e-9]
        surely = [option for option in options if sums[option] <= budget * (1 - 4e-4)]
        if found is None:
            assert not surely
            continue
        assert tuple(found) in allowed
        assert min(value[o] for o in allowed) <= value[tuple(found)] + 1e-12
        assert not surely or value[tuple(found)] <= min(value[o] for o in surely) + 1e-12


def zero_removed(model: Any) -> None:
    """Cut off by zeros what `KEPT` does not name."""
    for layer, kept in zip(encoder_layers(model), KEPT, strict=True):
        linears = linears_of(layer)
        for head in {0, 1} - set(kept.heads):
            linears["attention_output"].weight.data[:, head * HEAD : (head + 1) * HEAD] = 0.0
        gone = [n for n in range(32) if n not in kept.neurons]
        linears["output"].weight.data[:, gone] = 0.0


@pytest.mark.parametrize("family", FAMILIES)
def test_removing_is_cutting_off(family: str, tmp_path: Path) -> None:
    """Also after saving and loading; stock transformers refuses the folder, whose shapes differ."""
    model = make_model(family)
    zero_removed(model)
    before, parameters = logits(model), sum(p.numel() for p in model.parameters())
    shrink(model, KEPT)
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-6)
    assert widths_of(model) == model.config.layer_widths == [[1, 17], [2, 2]]
    # of a head 3 x 8 rows of 16 and a bias, 8 columns of 16; of a neuron a row, a column, a bias
    removed = 3 * HEAD * 17 + HEAD * 16 + (15 + 30) * (16 + 16 + 1)
    assert sum(p.numel() for p in model.parameters()) == parameters - removed

    model.save_pretrained(tmp_path / "shrunk")
    loaded = load_checkpoint(tmp_path / "shrunk")
    assert type(loaded) is type(model)
    assert torch.equal(logits(loaded), logits(model))
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "shrunk")
    drop_layers(loaded, [1])
    assert loaded.config.layer_widths == [[2, 2]]


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_equal_layers_with_all_heads_are_a_stock_model(family: str, tmp_path: Path) -> None:
    model = shrink(make_model(family), [Kept([0, 1], range(8)), Kept([0, 1], range(8, 16))])
    assert not hasattr(model.config, "layer_widths")
    model.save_pretrained(tmp_path)
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(logits(stock), logits(model))


def test_a_damaged_folder_of_this_kind_gets_its_sentence(tmp_path: Path) -> None:
    model = shrink(make_model(), KEPT)
    model.config.layer_widths = [[2, 2], [2, 2]]
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="cannot read the weights"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("widths", [[[1, 8]], [[1, 8], [3, 8]], [[1, 8], [0, 8]], [[1, 8], [1]]])
def test_widths_that_do_not_fit(widths: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"of the 2 layers, .* at most \[2, 32\]; got"):
        resize(make_model(), widths)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_grams_are_those_of_the_inputs_without_padding(family: str) -> None:
    model, [batch] = make_model(family), batch_of()
    linears = linears_of(encoder_layers(model)[1])
    seen = {}
    for name in REPAIRED:
        linears[name].register_forward_pre_hook(
            lambda _, taken, name=name: seen.update({name: taken[0]})
        )
    logits(model)
    for name in REPAIRED:
        x = with_one(seen[name][batch["attention_mask"] == 1]).double()
        gram = input_grams(model, [batch])[1][name]
        torch.testing.assert_close(gram, x.T @ x / len(x), rtol=1e-5, atol=1e-6)


def test_sensitivity_is_the_fisher_information() -> None:
    """Drawn often enough; for two classes it is p (1 - p) (∂(z₁ - z₀)/∂y)², by hand."""
    model, [batch] = make_model(), batch_of(4)
    torch.manual_seed(0)
    found = output_sensitivities(model, [batch] * 600)[0]["output"]
    made: list[torch.Tensor] = []
    linear = linears_of(encoder_layers(model)[0])["output"]
    hook = linear.register_forward_hook(lambda *arguments: made.append(arguments[2]))
    z = model.train(False)(**batch).logits
    hook.remove()
    p = z.softmax(-1)[:, 1]
    (slope,) = torch.autograd.grad((z[:, 1] - z[:, 0]).sum(), made)
    is_token = batch["attention_mask"] == 1
    expected = ((p * (1 - p))[:, None, None] * slope**2)[is_token].mean(0)
    torch.testing.assert_close(found.float(), expected.detach(), rtol=0.15, atol=0.0)


def test_drawn_labels_are_those_the_model_is_sure_of() -> None:
    is_token = torch.tensor([[True, True, False]])
    sure = torch.tensor([[9.0, -90.0, 99.0]])  # of the positions that are no padding, the first
    assert float(drawn_loss({"start_logits": sure}, is_token)) == pytest.approx(0.0, abs=1e-6)
    tags = torch.tensor([[[50.0, 0.0], [0.0, 50.0], [0.0, 0.0]]])
    assert float(drawn_loss({"logits": tags}, is_token)) == pytest.approx(0.0, abs=1e-6)
    single = torch.ones(1, 1, requires_grad=True)
    drawn_loss({"logits": single}, is_token).backward()
    assert single.grad is not None
    assert float(single.grad) != 0.0


def test_refit_is_damped_least_squares() -> None:
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((40, 3)), rng.standard_normal((40, 2))
    linear = nn.Linear(3, 2)
    start = torch.cat([linear.weight, linear.bias[:, None]], 1).detach().double().numpy().T
    ones = np.column_stack([x, np.ones(40)])
    penalty = DAMPING * (x**2).mean()
    pull = penalty**0.5 * np.diag([1.0, 1.0, 1.0, 0.0])
    a, b = np.vstack([ones / 40**0.5, pull]), np.vstack([t / 40**0.5, pull @ start])
    expected = np.linalg.lstsq(a, b, rcond=None)[0].T
    with torch.no_grad():
        refit(linear, torch.from_numpy(ones.T @ ones / 40), torch.from_numpy(ones.T @ t / 40))
    np.testing.assert_allclose(linear.weight.detach(), expected[:, :3], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(linear.bias.detach(), expected[:, 3], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra"])
def test_repair(family: str) -> None:
    """Nothing to do for a whole model; what a shrunk one computes comes nearer to the original."""
    original, batches = make_model(family), batch_of(64)
    same = make_model(family)
    repair(same, original, batches)
    torch.testing.assert_close(logits(same), logits(original), rtol=1e-3, atol=1e-4)
    sliced, repaired = (shrink(make_model(family), KEPT) for _ in range(2))
    repair(repaired, original, batches)

    def distance(model: Any) -> float:
        return float((logits(model) - logits(original)).square().sum())

    assert distance(repaired) < 0.5 * distance(sliced)


def test_what_does_nothing_goes_first() -> None:
    """A head and neurons that are cut off already cost no error, whatever is chosen."""
    model = make_model(intermediate_size=64)
    first = linears_of(encoder_layers(model)[0])
    first["attention_output"].weight.data[:, HEAD:] = 0.0
    first["output"].weight.data[:, 32:] = 0.0
    batches = calibration_batches(model, examples_of(64), 16, seed=0)
    assert sum(len(batch["input_ids"]) for batch in batches) == 16
    paths = removal_paths(model, batches)
    assert [path.neurons for path in paths] == [[64, 48, 32, 16]] * 2
    assert paths[0].feed_forward.errors[2] == pytest.approx(0.0, abs=1e-9)

    def costs(units: Any, is_last: bool) -> list[float]:
        return [float(unit) for unit in units]

    kept = choose_kept(paths, costs, costs, 1 + 32 + 2 + 64 + 0.1)
    assert kept == [Kept([0], list(range(32))), Kept([0, 1], list(range(64)))]
    assert choose_kept(paths, costs, costs, 30.0) is None
    assert choose_kept(paths, costs, costs, -1.0) is None
