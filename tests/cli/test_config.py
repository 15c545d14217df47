"""Every file of conf/ composes and converts; every wrong name gets its sentence."""

import dataclasses
import inspect
import typing
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from support.configs import ROOTS, compose

import toolkit.config
from toolkit.cli import COMMANDS
from toolkit.config import schema_keys
from toolkit.errors import UsageError
from toolkit.overrides import convert, explain

CONF = Path(__file__).resolve().parents[2] / "conf"
GROUPS = sorted(folder.name for folder in CONF.iterdir() if any(folder.glob("*.yaml")))
OPTIONS = sorted(f"{file.parent.name}={file.stem}" for file in CONF.glob("*/*.yaml"))
OVERLAYS = {"recipe", "search"}  # of other groups, so no fields of their own
# What these options ask of the user.
NEEDED = {"model=local": ["model.path=x"], "teacher=dense": ["teacher.path=x"]}
NEEDED["sparsity=structured"] = ["sparsity.target_speedup=2"]


def group_type(root: type, group: str) -> Any:
    return typing.get_type_hints(root).get(group)


def verbs_with(group: str) -> list[str]:
    if group in OVERLAYS:
        return ["train"]
    return [v for v in ROOTS if v == group == "bench" or group_type(ROOTS[v], group)]


def test_all_yaml_files_are_roots_or_options() -> None:
    options = {CONF / f"{option.replace('=', '/')}.yaml" for option in OPTIONS}
    roots = {CONF / f"{name}.yaml" for name in (*COMMANDS, "run", "seed")}
    # `optional trainer/for: ${trainer}_${model}` in train.yaml
    pairs = {
        CONF / "trainer" / "for" / f"{trainer.stem}_{model.stem}.yaml"
        for trainer in CONF.glob("trainer/*.yaml")
        for model in CONF.glob("model/*.yaml")
    }
    launchers = set(CONF.glob("hydra/launcher/*.yaml"))  # Hydra's groups, not ours
    files = set(CONF.rglob("*.yaml"))
    assert files - pairs - launchers == options | roots
    assert files & pairs


def test_demo_learns_with_its_own_values_unless_told_otherwise() -> None:
    demo = compose("train", "sparsity=prune90")
    assert (
        demo.trainer["learning_rate"] > compose("train", "model=minilm_l6").trainer["learning_rate"]
    )
    assert demo.sparsity.end_epoch < demo.trainer["num_train_epochs"]
    assert demo.sparsity.final_sparsity == 0.9
    assert compose("train", "trainer.learning_rate=0.1").trainer["learning_rate"] == 0.1
    student = compose("train", "recipe=demo", "teacher.path=x", "depth=full", "sparsity=prune80")
    assert student.model.path == "x"
    assert (student.depth.name, student.sparsity.name) == ("full", "prune80")


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_converts(option: str) -> None:
    group, _, name = option.partition("=")
    verbs = verbs_with(group)
    assert verbs
    needed = list(NEEDED.get(option, []))
    if group == "recipe":
        needed += NEEDED["teacher=dense"]
    for verb in verbs:
        if verb == "serve":
            needed.append("onnx=x")
        package = "@_global_" if verb == group == "bench" else ""
        config = compose(verb, f"{group}{package}={name}", *needed)
        assert type(config) is ROOTS[verb]
        part: Any = getattr(config, group, None)
        if hasattr(part, "name"):
            assert part.name == name


@pytest.mark.parametrize("group", sorted({*GROUPS} - {"trainer"} - OVERLAYS))
def test_one_option_of_a_group_holds_all_fields_and_the_others_build_on_it(group: str) -> None:
    """So a new field is a line in config.py and a line in one YAML file."""
    files: dict[str, Any] = {
        file.stem: OmegaConf.to_container(OmegaConf.load(file))
        for file in CONF.glob(f"{group}/*.yaml")
    }
    schema = getattr(toolkit.config, f"{group.capitalize()}Config")
    fields = {field.name for field in dataclasses.fields(schema)}
    bases = [name for name, values in files.items() if "defaults" not in values]
    assert len(bases) == 1
    assert files[bases[0]].keys() == fields
    for name, values in files.items():
        assert values.keys() - {"defaults"} <= fields
        while name != bases[0]:  # each step leads to an option of this group, and none in a circle
            name, own = files[name]["defaults"]
            assert own == "_self_"


@pytest.mark.parametrize("verb", ["train", "export", "bench"])
def test_verbs_need_nothing_said(verb: str) -> None:
    config = compose(verb)
    assert config.model.name == "demo"
    assert config.seed == 42


def test_groups_folders_classes_and_fields_are_the_same_words() -> None:
    fields = {field.name for root in ROOTS.values() for field in dataclasses.fields(root)}
    classes = {
        name.removesuffix("Config").lower()
        for name, _ in inspect.getmembers(toolkit.config, dataclasses.is_dataclass)
        if name.endswith("Config")
    }
    assert classes == set(GROUPS) - {"trainer"} - OVERLAYS  # another library's words
    assert set(GROUPS) - OVERLAYS <= fields
    for root in ROOTS.values():
        for group in classes & {field.name for field in dataclasses.fields(root)}:
            assert group_type(root, group).__name__ == f"{group.capitalize()}Config"


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["sparsity.final_sparsity=0.85"], "sparsity.final_sparsity", 0.85),
        (["sparsity=prune70_block4"], "sparsity.block_shape", [1, 4]),
        (["sparsity=prune97_block4"], "sparsity.final_sparsity", 0.97),
        (["depth.keep=[0,6,11]"], "depth.keep", [0, 6, 11]),
        (["trainer.weight_decay=0.1"], "trainer.weight_decay", 0.1),
        (["trainer.learning_rate=0.1", "trainer=smoke"], "trainer.learning_rate", 0.1),
        (["trainer=smoke", "sparsity=prune90"], "sparsity.final_sparsity", 0.9),
        (["trainer=smoke", "sparsity=prune90"], "sparsity.end_epoch", 1.0),
        (["recipe=bert12_dense"], "trainer.warmup_steps", 5400),
        (["recipe=bert12_dense", "model=roberta_base"], "model.name", "roberta_base"),
        (["then=[export,bench]"], "then", list(toolkit.config.Verb)),
        (["model=distilbert_base", "model.weights=random"], "model.config.n_layers", 6),
    ],
)
def test_overrides_arrive(overrides: list[str], key: str, value: Any) -> None:
    found: Any = compose("train", *overrides)
    for part in key.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == value


@pytest.mark.parametrize("layers", [12, 6, 3])
def test_recipes_are_the_published_ones(layers: int) -> None:
    config = compose("train", f"recipe=bert{layers}_prune90", "teacher.path=x")
    assert config.depth.num_layers == layers
    sparsity = config.sparsity
    assert (sparsity.initial_sparsity, sparsity.final_sparsity) == (None, 0.9)
    assert (sparsity.start_epoch, sparsity.end_epoch) == (2.0, 20.0)
    assert sparsity.update_frequency == 0.01
    assert sparsity.block_shape == [1, 1]
    assert (config.teacher.hardness, config.teacher.temperature) == (1.0, 2.0)
    assert (config.task.max_length, config.task.doc_stride) == (384, 128)
    trainer = config.trainer
    assert (trainer["num_train_epochs"], trainer["per_device_train_batch_size"]) == (30, 16)
    assert (trainer["learning_rate"], trainer["lr_scheduler_type"]) == (5e-5, "linear")
    assert trainer["warmup_steps"] == 0
    assert config.seed == 42


@pytest.mark.parametrize(
    ("verb", "overrides", "words"),
    [
        ("train", ["modle=bert_base"], "train has no key 'modle'; did you mean 'model'"),
        ("train", ["model=bert_bas"], "'bert_bas' is no option of model; did you mean 'bert_base'"),
        ("train", ["sparsity.final_sparsty=0.9"], "did you mean 'sparsity.final_sparsity'"),
        ("train", ["final_sparsity=0.9"], "did you mean 'sparsity.final_sparsity'"),
        ("train", ["recpie=demo"], "did you mean 'recipe'"),
        ("train", ["model/xx=demo"], "train has no key 'model/xx'; did you mean 'model'"),
        ("bench", ["batchsize=4"], "did you mean 'batch_size'"),
        ("bench", ["trainer.learning_rate=1"], "bench has no key 'trainer.learning_rate'"),
        ("bench", ["recipe=demo"], "bench has no key 'recipe'"),
        ("train", ["+x=1"], "train has no key 'x'"),
        ("train", ["++sparsity.x=1"], "train has no key 'sparsity.x'"),
        ("train", ["model.config.hiden_size=1"], "model.config has no key 'hiden_size'"),
        ("train", ["seed=abc"], "seed=abc: Value 'abc' of type 'str' could not be converted"),
        ("train", ["model.weights=foo"], "expected one of [pretrained, random]"),
        ("train", ["then=[train]"], "expected one of [export, bench]"),
        ("train", ["depth=6"], "takes the name of one of its options; got depth=6"),
        ("train", ["depth=full,layers3"], "add -m to run once for each"),
        ("train", ["seed=range(1,3)"], "seed takes one value, got range(1,3): add -m"),
        (
            "train",
            ["model.path=a,b"],
            "write model.path=[a,b] for a list, \"model.path='a,b'\" for",
        ),
        ("train", ["model=null"], "takes the name of one of its options; got model=null"),
        ("train", ["model=[demo]"], "takes the name of one of its options; got model=[demo]"),
        ("train", ["~model"], "takes the name of one of its options; got ~model"),
        ("train", ["model={paht: x}"], "train has no key 'model.paht'; did you mean 'model.path'"),
        ("train", ["task.splits.tets=x"], "task.splits has no key 'tets' here; write +task.splits"),
        ("train", ["seed=null"], "seed: field 'seed' is not Optional"),
        ("train", ["model.path=${x}"], "model.path: Interpolation key 'x' not found"),
        ("train", ["model.path=a=b"], "in quotes if it holds blanks, brackets or ="),
        ("train", ["foo"], "cannot read 'foo': expected key=value"),
        ("train", ["model=local"], "train needs model.path: give model.path=VALUE"),
        ("train", ["teacher=dense"], "teacher=dense needs teacher.path=DIR"),
        ("train", ["sparsity.final_sparsity=1.5"], "final_sparsity must be in [0, 1); got 1.5"),
        ("train", ["sparsity=structured"], "needs a target: sparsity.target_speedup=3, or"),
        ("train", ["sparsity.target_speedup=1"], "target_speedup must be > 1; got 1"),
        ("train", ["sparsity.target_steps=0"], "target_steps must be at least 1; got 0"),
        ("train", ["sparsity.target_steps=2"], "divides sparsity.target_speedup; got no target"),
        (
            "train",
            ["sparsity.target_steps=2", "sparsity.target_latency_ms=5"],
            "sparsity.target_steps=2 divides sparsity.target_speedup; got sparsity.target_latency",
        ),
        ("train", ["sparsity.target_latency_ms=0"], "target_latency_ms must be > 0; got 0"),
        ("report", [], "report needs paths"),
    ],
)
def test_what_is_wrong_is_named_in_one_sentence(
    verb: str, overrides: list[str], words: str
) -> None:
    with pytest.raises((UsageError, HydraException, ValueError)) as caught:
        compose(verb, *overrides)
    error = caught.value
    text = str(error)
    if not isinstance(error, UsageError):
        text = explain(verb, ROOTS[verb], overrides, error)
    assert words in text
    assert "\n" not in text


def test_a_configuration_of_the_users_own_needs_no_schema_entry() -> None:
    config = compose("train")
    plain = DictConfig({"seed": 1, "unknown": 2})
    with pytest.raises(UsageError, match="train has no key 'unknown'"):
        convert("train", type(config), plain)


def test_schema_keys_reach_into_groups() -> None:
    keys = schema_keys(ROOTS["bench"])
    assert {"batch_size", "model", "model.path", "export.atol"} <= set(keys)
