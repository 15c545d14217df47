"""`toolkit train recipe_file=FILE`: SparseML's recipes beside ours, on the real command line."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Run
from support.configs import TINY, compose
from support.recipes import ENCODER, EPOCHS, MAGNITUDE, ROUNDING, rate, recipe

from toolkit.compress.depth import kept_layers
from toolkit.compress.quantization.callback import qat_steps
from toolkit.config import TrainRoot
from toolkit.errors import InputError, UsageError
from toolkit.recipes.command import take_recipes
from toolkit.record import read_record

# Published ones, as ours are called: what their files hold, in other words.
DROPPED = {3: [1, 2, 3, 4, 5, 7, 8, 9, 10], 6: [1, 3, 5, 7, 9, 10]}
COMPOUND = ("bert12_prune80", "bert6_prune95", "bert3_prune70", "bert6_prune90_int8")


def compound(name: str) -> str:
    """Write the recipe of a cell of the published table."""
    layers, zeros, *int8 = name.removeprefix("bert").split("_")
    head = f"epochs: &epochs {40 if int8 else 30}\nsparsity: {int(zeros[5:]) / 100}\n"
    modifiers: list[tuple[str, dict[str, object]]] = [
        ("EpochRangeModifier", {"start_epoch": 0.0, "end_epoch": "*epochs"})
    ]
    if int(layers) < 12:
        names = [f"bert.encoder.layer.{n}" for n in DROPPED[int(layers)]]
        modifiers.append(("LayerPruningModifier", {"start_epoch": -1.0, "layers": names}))
    schedule = {"start_epoch": 2, "end_epoch": 20.0, "update_frequency": 0.01}
    values = {"init_sparsity": 0.0, "final_sparsity": "eval(sparsity)", "params": ENCODER}
    mask = {"mask_type": "[1,4]" if int8 else "unstructured", "leave_enabled": True}
    modifiers.append(("GMPruningModifier", schedule | values | mask))
    if int8:
        modifiers += [rate(0.0, 30.0, 5e-5, 0.0), rate(30.0, "eval(epochs)", 0.00005, 0.0)]
        rounding: dict[str, object] = {**ROUNDING, "start_epoch": 30}
        rounding["disable_quantization_observer_epoch"] = 35.0
        modifiers.append(("QuantizationModifier", rounding))
    text = recipe(*modifiers, head=head)
    return f"A heading\n\n---\n{text}---\n\n# What it is for\n"


def imported(path: Path, *overrides: str) -> TrainRoot:
    taken = take_recipes([f"recipe_file={path}", *overrides])
    assert taken is not None
    config = compose("train", *taken)
    assert isinstance(config, TrainRoot)
    return config


def alike(config: TrainRoot, layers: int = 12) -> dict[str, Any]:
    """Say what a configuration does, whatever words it has for it; 100 steps make an epoch."""
    epochs = config.trainer["num_train_epochs"]
    q = config.quantization
    return {
        "layers": kept_layers(layers, config.depth),
        "sparsity": replace(
            config.sparsity, initial_sparsity=config.sparsity.initial_sparsity or 0
        ),
        "quantization": (
            replace(q, start_epoch=None, freeze_epoch=None),
            qat_steps(q, 100, epochs * 100),
        )
        if q.is_on
        else None,
        "trainer": config.trainer,
        "rates": config.rates,
    }


@pytest.mark.parametrize("name", COMPOUND)
def test_a_published_recipe_is_our_own(tmp_path: Path, name: str) -> None:
    """Apart from the teacher, which those of 2021 leave to the command line."""
    path = tmp_path / "recipe.md"
    path.write_text(compound(name))
    ours = compose("train", f"recipe={name}", "teacher.path=x")
    assert alike(imported(path, "model=bert_base")) == alike(ours)
    assert imported(path).task.name == "demo"  # the task stays the user's


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("bert-base-12layers_prune80.md", "bert12_prune80"),
        ("bert-base-3layers_prune70.md", "bert3_prune70"),
        ("bert-base-6layers_prune_quant90.md", "bert6_prune90_int8"),
    ],
)
def test_the_published_files(data_dir: Path, file: str, name: str) -> None:
    ours = compose("train", f"recipe={name}", "teacher.path=x")
    assert alike(imported(data_dir / "recipes" / file, "model=bert_base")) == alike(ours)


def test_second_order_and_sparse_transfer_are_our_own(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    teacher = ("DistillationModifier", {"hardness": 1.0, "temperature": 2.0})
    fields = MAGNITUDE | {
        "init_sparsity": 0.7,
        "final_sparsity": 0.97,
        "start_epoch": 2,
        "end_epoch": 26,
        "update_frequency": 4.0,
    }
    cycles = rate(2.0, 30.0, 8e-5, 8e-6, lr_func="cyclic_linear", cycle_epochs=4.0)
    path.write_text(recipe(
        ("EpochRangeModifier", {"start_epoch": 0, "end_epoch": 30}),
        rate(0.0, 2.0, 8e-5, 8e-6),
        cycles,
        ("OBSPruningModifier", fields | {"grad_sampler_kwargs": "{batch_size: 8}"}),
        teacher,
    ))  # fmt: skip
    ours = compose("train", "recipe=obert12_prune97", "teacher.path=x")
    found = imported(path, "teacher.path=x", "model=bert_base")
    assert alike(found) == alike(ours)
    assert found.teacher == ours.teacher

    path.write_text(recipe(
        ("EpochRangeModifier", {"start_epoch": 0, "end_epoch": 8}),
        rate(0, 8, 1.5e-4, 1.5e-6),
        ("ConstantPruningModifier", {"start_epoch": 0, "end_epoch": 8, "params": ENCODER}),
        ("DistillationModifier", {"hardness": 1.0, "temperature": 5.5}),
    ))  # fmt: skip
    ours = compose("train", "recipe=obert12_prune90_transfer", "teacher.path=x")
    found = imported(path, "teacher.path=x", "model=bert_base")
    assert alike(found) == alike(ours)
    assert found.teacher == ours.teacher


def test_the_command_line_wins(tmp_path: Path) -> None:
    path = tmp_path / "recipe.md"
    path.write_text(compound("bert6_prune90_int8"))
    config = imported(path, "sparsity.final_sparsity=0.7", "trainer.num_train_epochs=50", "seed=7")
    assert (config.sparsity.final_sparsity, config.sparsity.block_shape) == (0.7, [1, 4])
    assert (config.trainer["num_train_epochs"], config.seed) == (50, 7)
    # an option replaces what the recipe says of its group
    options = ("sparsity=movement90", "quantization=none", "depth=layers9", "model=bert_base")
    config = imported(path, *options)
    assert (config.sparsity.name, config.sparsity.end_epoch) == ("movement90", 8)
    assert (config.quantization.is_on, kept_layers(12, config.depth)[1]) == (False, 1)
    config = imported(path, "trainer=smoke")
    assert config.trainer["num_train_epochs"] == 2
    # except a teacher's, which only says whose
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe(EPOCHS, ("DistillationModifier", {"hardness": 0.4})))
    config = imported(path, "teacher=self")
    assert (config.teacher.name, config.teacher.hardness) == ("self", 0.4)


def test_a_saved_recipe_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, saved = tmp_path / "recipe.md", tmp_path / "recipe" / "it's mine.yaml"
    path.write_text(compound("bert6_prune90_int8"))
    assert take_recipes([f"recipe_file={path}", f"recipe_save={saved}"]) is None
    out, err = capsys.readouterr()
    assert "as a recipe of ours: toolkit train recipe_file=" in out
    assert "line 34: QuantizationModifier: INT8 are" in err
    lines = saved.read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert "line 34: QuantizationModifier: INT8 are" in "\n".join(lines[:5])
    assert yaml.safe_load(saved.read_text())["sparsity"]["final_sparsity"] == 0.9
    assert alike(imported(saved)) == alike(imported(path))
    with pytest.raises(UsageError, match="exists already: choose another name"):
        take_recipes([f"recipe_file={path}", f"recipe_save={saved}"])


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["recipe_file="], "recipe_file needs the name of a file"),
        (["recipe_file=a", "recipe_file=b"], "expected one recipe_file=FILE; got 2"),
        (["recipe_save=a"], "expected one recipe_file=FILE; got 0"),
        (["recipe_file=a", "recipe=demo"], "are two recipes: give one of them"),
        (["recipe_file=a", "recipe_save=b", "seed=1"], "trains nothing: .* got seed=1"),
    ],
)
def test_arguments_that_exclude_one_another(args: list[str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        take_recipes(args)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expects the file .*nowhere.md, but there is"):
        take_recipes([f"recipe_file={tmp_path / 'nowhere.md'}"])
    with pytest.raises(InputError, match="is no file; expected a recipe"):
        take_recipes([f"recipe_file={tmp_path}"])
    large = tmp_path / "large.yaml"
    with large.open("wb") as file:
        file.truncate(5_000_000_000)  # a hole: it takes no room
    with pytest.raises(InputError, match="has 5000000000 bytes; a recipe has at most 1000000"):
        take_recipes([f"recipe_file={large}"])
    (tmp_path / "binary.md").write_bytes(b"\x80\x81")
    with pytest.raises(InputError, match="cannot read"):
        take_recipes([f"recipe_file={tmp_path / 'binary.md'}"])


@pytest.mark.slow
def test_on_the_command_line(toolkit: Run, tmp_path: Path) -> None:
    (tmp_path / "deep.md").write_text(compound("bert6_prune90_int8"))
    shown = toolkit("train", "recipe_file=deep.md", "seed=3", "--cfg", "job")
    assert shown.returncode == 0, shown.stderr
    assert yaml.safe_load(shown.stdout)["depth"]["drop"] == DROPPED[6]
    assert "note: deep.md, line 34: QuantizationModifier: INT8 are" in shown.stderr

    saved = toolkit("train", "recipe_file=deep.md", "recipe_save=recipe/mine.yaml")
    assert saved.returncode == 0, saved.stderr
    again = toolkit(
        *("train", f"hydra.searchpath=[file://{tmp_path}]", "recipe=mine"),
        *("seed=3", "--cfg", "job"),
    )
    without_name = [line for line in again.stdout.splitlines() if "output_dir" not in line]
    assert without_name == [line for line in shown.stdout.splitlines() if "output_dir" not in line]

    (tmp_path / "bad.yaml").write_text(recipe(EPOCHS, ("ACDCPruningModifier", {"x": 1})))
    done = toolkit("train", "recipe_file=bad.yaml")
    assert done.returncode == 1
    assert done.stderr.startswith("error: bad.yaml, line 5: ACDCPruningModifier: cannot be carried")
    assert done.stderr.count("\n") == 1
    typo = toolkit("train", "recipe_fil=bad.yaml")
    assert (typo.returncode, "did you mean 'recipe_file'" in typo.stderr) == (2, True)


@pytest.mark.slow
def test_a_sweep_over_two_recipes(toolkit: Run, tmp_path: Path) -> None:
    """One drops a layer and prunes a part of the other, one has rates of its own."""
    small = MAGNITUDE | {"start_epoch": 0, "end_epoch": 0.5, "update_frequency": 0.1}
    (tmp_path / "a.yaml").write_text(recipe(
        ("LayerPruningModifier", {"layers": "[bert.encoder.layer.0]"}),
        ("GMPruningModifier", small | {"params": ENCODER[:1]}),
    ))  # fmt: skip
    (tmp_path / "b.yaml").write_text(recipe(
        ("EpochRangeModifier", {"start_epoch": 0, "end_epoch": 1}),
        rate(0, 0.5, 1e-4, 1e-3),
        rate(0.5, 1, 1e-3, 0),
    ))  # fmt: skip
    done = toolkit(
        *("train", "-m", "recipe_file=a.yaml,b.yaml", *TINY),
        *("trainer.logging_steps=1", "output_dir=runs"),
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    first, second = (read_record(tmp_path / "runs" / name) for name in "01")
    assert (first["model"]["layers"], second["model"]["layers"]) == (1, 2)
    zeros = {each["name"]: each["sparsity"] for each in first["model"]["sparsity"]["tensors"]}
    pruned = {name for name, share in zeros.items() if share > 0.5}
    assert {name.rsplit(".", 2)[1] for name in pruned} == {"query"}
    rates = [entry["learning_rate"] for entry in second["training"]["log"] if "loss" in entry]
    # TINY's learning rate, 1e-3, is also the largest of the recipe: 8 steps, up and down
    assert rates == pytest.approx([1e-3 * share for share in (0.1, 0.325, 0.55, 0.775)] + [
        1e-3 * share for share in (1, 0.75, 0.5, 0.25)
    ])  # fmt: skip
