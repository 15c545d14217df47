"""From modifiers to our configuration, and what has no counterpart."""

from collections.abc import Mapping
from typing import Any

import pytest
from support.recipes import ENCODER, EPOCHS, MAGNITUDE, PARTS, ROUNDING, rate, recipe

from toolkit.errors import InputError
from toolkit.recipes.conversion import convert

Fields = Mapping[str, object]


def overlay(*modifiers: tuple[str, Fields]) -> dict[str, Any]:
    return convert(recipe(*modifiers), "x.yaml").values


def notes(*modifiers: tuple[str, Fields]) -> str:
    return "\n".join(convert(recipe(*modifiers), "x.yaml").notes)


def test_magnitude() -> None:
    found = overlay(EPOCHS, ("GMPruningModifier", MAGNITUDE | {"log_types": "__ALL__"}))
    assert found == {
        "defaults": [{"override /sparsity": "dense"}],
        "sparsity": {
            "name": "prune85",
            "method": "magnitude",
            "ranking": "uniform",
            "schedule": "cubic",
            "initial_sparsity": 0.05,
            "final_sparsity": 0.85,
            "start_epoch": 1.0,
            "end_epoch": 6.0,
            "update_frequency": 0.05,
            "block_shape": [1, 1],
        },
        "trainer": {"num_train_epochs": 10},
    }


@pytest.mark.parametrize(
    ("name", "fields", "changes"),
    [
        ("MagnitudePruningModifier", {"inter_func": "linear"}, {"schedule": "linear"}),
        ("GlobalMagnitudePruningModifier", {}, {"ranking": "global"}),
        ("MagnitudePruningModifier", {"global_sparsity": True}, {"ranking": "global"}),
        ("GMPruningModifier", {"init_sparsity": "__FROM_PARAM__"}, {"initial_sparsity": None}),
        (
            "GMPruningModifier",
            {"score_type": "movement"},
            {"method": "movement", "name": "movement85"},
        ),
        ("MovementPruningModifier", {}, {"method": "movement", "name": "movement85"}),
        *(
            (
                "GMPruningModifier",
                {"mask_type": mask},
                {"block_shape": [1, 4], "name": "prune85_block4"},
            )
            for mask in ("block4", "block", [1, 4])
        ),
        (
            "GMPruningModifier",
            {"mask_type": "2:4", "final_sparsity": 0.5},
            {"n_of_m": [2, 4], "final_sparsity": 0.5, "name": "prune50_2of4", "block_shape": ...},
        ),
        ("GMPruningModifier", {"params": "__ALL_PRUNABLE__"}, {}),
        ("GMPruningModifier", {"params": "['re:.*layer.*(query|key|value|dense).weight']"}, {}),
    ],
)
def test_kinds_of_pruning(name: str, fields: Fields, changes: dict[str, Any]) -> None:
    usual = overlay(EPOCHS, ("GMPruningModifier", MAGNITUDE))["sparsity"]
    wanted = {key: value for key, value in (usual | changes).items() if value is not ...}
    assert overlay(EPOCHS, (name, {**MAGNITUDE, **fields}))["sparsity"] == wanted


def test_second_order() -> None:
    fields = MAGNITUDE | {
        "num_grads": 64,
        "damp": "1e-6",
        "fisher_block_size": 20,
        "num_recomputations": 2,
        "grad_sampler_kwargs": "{batch_size: 4}",
    }
    sparsity = overlay(EPOCHS, ("OBSPruningModifier", fields))["sparsity"]
    assert (sparsity["method"], sparsity["ranking"], sparsity["name"]) == (
        "obert",
        "global",
        "obert85",
    )
    assert sparsity["fisher"] == {
        "block": 20,
        "num_gradients": 64,
        "damping": 1e-6,
        "recomputations": 2,
        "batch_size": 4,
    }
    plain = overlay(EPOCHS, ("OBSPruningModifier", MAGNITUDE))["sparsity"]["fisher"]
    assert (plain["block"], plain["num_gradients"], plain["damping"]) == (50, 1024, 1e-7)
    assert plain["batch_size"] == "${trainer.per_device_train_batch_size}"


def test_parts_of_the_encoder() -> None:
    def parts(**fields: object) -> Any:
        found = overlay(EPOCHS, ("GMPruningModifier", MAGNITUDE | fields))["sparsity"]
        return found["final_sparsity"], found.get("parts")

    assert parts(params=ENCODER[:5]) == (0.85, {"*.output": 0.0})
    assert parts(params="['re:bert.encoder.layer.[02]\\..*(self|dense).*weight']") == (
        0.85,
        {"layers.0.*": 0.85, "layers.2.*": 0.85, "*": 0.0},
    )
    one = [f"bert.encoder.layer.1.{part}.weight" for part in PARTS[:2]]
    assert parts(params=one) == (
        0.85,
        {"layers.1.query": 0.85, "layers.1.key": 0.85, "*": 0.0},
    )
    by_sparsity = f"{{0.9: {ENCODER[:1]}, 0.5: {ENCODER}}}"
    found = parts(params=[], final_sparsity=by_sparsity)
    assert found == (0.9, {f"*.{name}": 0.5 for name in ("key", "value", "attention_output")} | {
        "*.intermediate": 0.5,
        "*.output": 0.5,
    })  # fmt: skip
    distilbert = "['re:distilbert.transformer.layer.*.attention.q_lin.weight']"
    assert parts(params=distilbert)[1].keys() == {
        *("*.key", "*.value", "*.attention_output", "*.intermediate", "*.output")
    }


def test_several_modifiers_prune_parts_by_one_schedule() -> None:
    lower = MAGNITUDE | {"params": ENCODER[:3], "final_sparsity": 0.5}
    upper = MAGNITUDE | {"params": ENCODER[3:]}
    found = overlay(EPOCHS, ("GMPruningModifier", lower), ("GMPruningModifier", upper))["sparsity"]
    assert (found["final_sparsity"], found["parts"]) == (
        0.85,
        {"*.query": 0.5, "*.key": 0.5, "*.value": 0.5},
    )
    for change, sentence in (
        ({"end_epoch": 7}, r"line 12: .*another end_epoch \(7.0\) than that in line 5 \(6.0\)"),
        ({"params": ENCODER}, "line 12: .*prunes layer 0's key, which another one prunes, too"),
    ):
        with pytest.raises(InputError, match=sentence):
            overlay(EPOCHS, ("GMPruningModifier", lower), ("GMPruningModifier", upper | change))


def test_dropped_layers_renumber_parts() -> None:
    gone = ("LayerPruningModifier", {"layers": [f"bert.encoder.layer.{n}" for n in (1, 3)]})
    found = overlay(EPOCHS, gone, ("GMPruningModifier", MAGNITUDE))
    assert found["depth"] == {"name": "drop2", "drop": [1, 3]}
    assert {"override /depth": "full"} in found["defaults"]
    assert "parts" not in found["sparsity"]
    names = [f"bert.encoder.layer.{n}.{part}.weight" for n in (0, 2) for part in PARTS]
    found = overlay(EPOCHS, gone, ("GMPruningModifier", MAGNITUDE | {"params": names}))
    assert list(found["sparsity"]["parts"]) == ["layers.0.*", "layers.1.*", "*"]


def test_constant_sparsity() -> None:
    for params in ("__ALL_PRUNABLE__", "__ALL__", ENCODER):
        found = overlay(EPOCHS, ("ConstantPruningModifier", {"start_epoch": 0, "params": params}))
        assert found["defaults"] == [{"override /sparsity": "locked"}]
        assert found["sparsity"] == {"schedule": "locked"}
    # what gradual pruning has made is kept anyway
    after = ("ConstantPruningModifier", {"start_epoch": 6, "end_epoch": 10, "params": "__ALL__"})
    gradual = ("GMPruningModifier", MAGNITUDE | {"leave_enabled": False})
    assert overlay(EPOCHS, gradual, after)["sparsity"]["final_sparsity"] == 0.85


def test_teacher_decay_and_frozen_embeddings() -> None:
    found = overlay(
        EPOCHS,
        ("DistillationModifier", {"hardness": 0.7, "distill_output_keys": "[logits]"}),
        ("SetWeightDecayModifier", {"start_epoch": 0.0, "weight_decay": 0.01}),
        (
            "TrainableParamsModifier",
            {
                "params": [
                    f"bert.embeddings.{name}_embeddings.weight"
                    for name in ("word", "position", "token_type")
                ],
                "trainable": False,
            },
        ),
    )
    assert found["defaults"] == [{"override /teacher": "dense"}]
    assert found["teacher"] == {"hardness": 0.7, "temperature": 2.0}
    assert overlay(("DistillationModifier", {}))["teacher"]["hardness"] == 0.5  # SparseML's
    assert found["trainer"]["weight_decay"] == 0.01
    assert found["model"] == {"freeze_embeddings": True}


@pytest.mark.parametrize(
    ("modifiers", "trainer", "others"),
    [
        (
            [rate(0, 10, 1e-4, 0)],
            {"learning_rate": 1e-4, "lr_scheduler_type": "linear"},
            {},
        ),
        (
            [rate(0, 10, "3e-5", 0.0, lr_func="cosine")],
            {"learning_rate": 3e-5, "lr_scheduler_type": "cosine"},
            {},
        ),
        (
            [("SetLearningRateModifier", {"start_epoch": 0.0, "learning_rate": 1e-5})],
            {"learning_rate": 1e-5, "lr_scheduler_type": "constant"},
            {},
        ),
        (  # completed until INT8 begins, and begun anew
            [rate(0, 7, 1e-4, 0), rate(7, 10, 5e-5, 1e-6), ("QuantizationModifier", ROUNDING)],
            {"learning_rate": 1e-4, "lr_scheduler_type": "linear"},
            {"quantization": {"learning_rate": 5e-5, "final_learning_rate": 1e-6}},
        ),
        (  # set back at every mask update: 1, 3, 5, 6
            [
                rate(0, 1, 1e-4, 2e-5),
                rate(1, 6, 1e-4, 2e-5, lr_func="cyclic_linear", cycle_epochs=2),
                rate(6, 10, 1e-4, 2e-5),
                ("GMPruningModifier", MAGNITUDE | {"update_frequency": 2}),
            ],
            {"learning_rate": 1e-4},
            {"sparsity": {"rewind": 0.2}},
        ),
        (
            [rate(0, 10, 1e-4, 1e-6), ("ConstantPruningModifier", {"params": "__ALL__"})],
            {"learning_rate": 1e-4},
            {"sparsity": {"rewind": 0.01}},
        ),
    ],
)
def test_simple_rates(
    modifiers: list[tuple[str, Fields]], trainer: dict[str, Any], others: dict[str, dict[str, Any]]
) -> None:
    found = overlay(EPOCHS, *modifiers)
    assert found["trainer"] == trainer | {"num_train_epochs": 10}
    assert "rates" not in found
    for group, values in others.items():
        assert found[group] | values == found[group]


@pytest.mark.parametrize(
    ("modifiers", "ranges"),
    [
        ([rate(0, 2, 0, 1e-4), rate(2, 10, 1e-4, 0)], [(0, 2, 0, 1), (2, 10, 1, 0)]),
        (  # the rate of INT8 training is the end of the one that there is
            [rate(0, 10, 1e-4, 0), ("QuantizationModifier", ROUNDING)],
            [(0, 10, 1, 0)],
        ),
        (
            [rate(0, 10, 1e-4, 5e-5, lr_func="cyclic_linear", cycle_epochs=4)],
            [(0, 4, 1, 0.5), (4, 8, 1, 0.5), (8, 10, 1, 0.5)],
        ),
        (
            [
                ("SetLearningRateModifier", {"learning_rate": 1e-4}),
                ("SetLearningRateModifier", {"learning_rate": 1e-5, "start_epoch": 6}),
            ],
            [(0, 6, 1, 1), (6, 10, 0.1, 0.1)],
        ),
        (
            [
                (
                    "LearningRateModifier",
                    {
                        "start_epoch": 0,
                        "lr_class": "MultiStepLR",
                        "lr_kwargs": "{milestones: [3, 7], gamma: 0.1}",
                        "init_lr": 0.001,
                    },
                )
            ],
            [(0, 3, 1, 1), (3, 7, 0.1, 0.1), (7, 10, 0.01, 0.01)],
        ),
        (
            [
                (
                    "LearningRateModifier",
                    {
                        "start_epoch": 4,
                        "lr_class": "StepLR",
                        "lr_kwargs": "{step_size: 3, gamma: 0.5}",
                        "init_lr": 0.001,
                    },
                )
            ],
            [(4, 7, 1, 1), (7, 10, 0.5, 0.5)],
        ),
    ],
)
def test_rates_of_several_ranges(
    modifiers: list[tuple[str, Fields]], ranges: list[tuple[float, ...]]
) -> None:
    found = overlay(EPOCHS, *modifiers)
    keys = ("start_epoch", "end_epoch", "first", "last")
    assert [tuple(each[key] for key in keys) for each in found["rates"]] == ranges
    assert {each["shape"] for each in found["rates"]} == {"linear"}


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        (ROUNDING, {"start_epoch": 7.0, "freeze_epoch": 8.0, "embeddings": True}),
        ({"start_epoch": -1}, {"start_epoch": 0.0, "freeze_epoch": 10.0, "embeddings": True}),
        (ROUNDING | {"submodules": "[bert.encoder, qa_outputs]"}, {"embeddings": False}),
        (ROUNDING | {"submodules": "[bert.embeddings, bert.encoder]"}, {"embeddings": True}),
        (ROUNDING | {"quantize_embeddings": 0}, {"embeddings": False}),
        (ROUNDING | {"exclude_module_types": "[LayerNorm, Tanh]"}, {"embeddings": True}),
        (ROUNDING | {"ignore": "[Embedding, classifier]"}, {"embeddings": False}),
        (
            ROUNDING
            | {
                "scheme": "{input_activations: {num_bits: 8, symmetric: False}, "
                "weights: {num_bits: 8, symmetric: True}}",
                "scheme_overrides": "{Embedding: {input_activations: null, weights: "
                "{num_bits: 8}}, classifier: {weights: null}}",
            },
            {"embeddings": True},
        ),
    ],
)
def test_quantization(fields: Fields, wanted: dict[str, Any]) -> None:
    found = overlay(EPOCHS, ("QuantizationModifier", fields))
    assert found["quantization"] | wanted == found["quantization"]
    assert {"override /quantization": "int8"} in found["defaults"]
    assert "line 5: QuantizationModifier: INT8 are" in notes(
        EPOCHS, ("QuantizationModifier", fields)
    )


def test_what_is_not_to_the_letter_is_noted_once() -> None:
    half, rest = (
        MAGNITUDE | {"params": f"['re:.*({names}).weight']"} for names in ("y", "e|dense")
    )
    for fields in (MAGNITUDE | {"params": "__ALL_PRUNABLE__"},):
        assert "line 5: GMPruningModifier: pooler and head" in notes(
            EPOCHS, ("GMPruningModifier", fields)
        )
    found = notes(("MovementPruningModifier", half), ("MovementPruningModifier", rest))
    assert found.count("scores are learnt by Adam") == 1
    assert notes(EPOCHS, ("GMPruningModifier", MAGNITUDE)) == ""


REFUSED: list[tuple[str, Fields, str]] = [
    ("ACDCPruningModifier", {"x": 1}, "line 5: ACDCPruningModifier: cannot be carried over"),
    ("GMPruningModifier", MAGNITUDE | {"wrong": 1}, "line 12: .*wrong is a field that cannot"),
    ("GMPruningModifier", {"params": ENCODER}, "line 5: .*needs the field"),
    (
        "GMPruningModifier",
        MAGNITUDE | {"inter_func": "inverse_cubic"},
        "line 12: .*inter_func must",
    ),
    ("GMPruningModifier", MAGNITUDE | {"mask_type": "channel"}, "line 12: .*mask_type must be"),
    ("GMPruningModifier", MAGNITUDE | {"leave_enabled": False}, "line 12: .*grow back"),
    ("GMPruningModifier", MAGNITUDE | {"final_sparsity": 1.0}, "line 8: .*final_sparsity must"),
    ("GMPruningModifier", MAGNITUDE | {"final_sparsity": 0.0}, "line 8: .*prunes nothing"),
    ("GMPruningModifier", MAGNITUDE | {"update_frequency": -1}, "line 11: .*update_frequency must"),
    ("GMPruningModifier", MAGNITUDE | {"params": "__ALL__"}, "line 6: .*word_embeddings"),
    ("GMPruningModifier", MAGNITUDE | {"params": "['re:.*weight']"}, "line 6: .*word_embeddings"),
    (
        "GMPruningModifier",
        MAGNITUDE | {"params": "[classifier.weight]"},
        "line 6: .*pooler or head",
    ),
    ("GMPruningModifier", MAGNITUDE | {"params": "['re:gpt.*']"}, "line 6: .*no weight of an enc"),
    ("GMPruningModifier", MAGNITUDE | {"params": 3}, "line 6: .*must be a list of names; got 3"),
    ("GMPruningModifier", MAGNITUDE | {"params": "['re:(']"}, "line 6: .*no regular expression"),
    (
        "OBSPruningModifier",
        MAGNITUDE | {"params": ENCODER[:2]},
        "line 5: .*ranked globally here",
    ),
    ("OBSPruningModifier", MAGNITUDE | {"magn_scorer": True}, "line 12: .*magn_scorer True cannot"),
    (
        "OBSPruningModifier",
        MAGNITUDE | {"grad_sampler_kwargs": "{shuffle: True}"},
        "line 12: .*may hold batch_size alone",
    ),
    ("ConstantPruningModifier", {"params": ENCODER[:5]}, "line 6: .*must name all weights"),
    (
        "ConstantPruningModifier",
        {"params": "__ALL__", "start_epoch": 2},
        "line 5: .*for a part of the training",
    ),
    ("LayerPruningModifier", {"layers": "[bert.pooler]"}, "line 6: .*no encoder layer"),
    (
        "LayerPruningModifier",
        {"layers": "[bert.encoder.layer.1]", "end_epoch": 5},
        "line 5: .*for a part of the training",
    ),
    ("DistillationModifier", {"end_epoch": 5}, "line 5: .*for a part of the training"),
    ("DistillationModifier", {"hardness": 2}, "line 6: .*hardness must be from 0 to 1; got 2"),
    ("DistillationModifier", {"distill_output_keys": "[loss]"}, "line 6: .*may name logits"),
    ("QuantizationModifier", {"weight_bits": 4}, "line 6: .*weight_bits 4 cannot be carried over"),
    ("QuantizationModifier", {"tensorrt": True}, "line 6: .*tensorrt True cannot"),
    ("QuantizationModifier", {"submodules": "[classifier]"}, "line 6: .*must name the encoder"),
    (
        "QuantizationModifier",
        {"submodules": "[bert.encoder, bert.encoder.layer.0]"},
        "line 6: .*'bert.encoder.layer.0' cannot be chosen",
    ),
    ("QuantizationModifier", {"ignore": "[Linear]"}, "line 6: .*'Linear' is computed in INT8"),
    (
        "QuantizationModifier",
        {"scheme": "{weights: {num_bits: 4}}"},
        "line 6: .*'weights' must have 8 bits",
    ),
    (
        "QuantizationModifier",
        {"scheme_overrides": "{Linear: {weights: null}}"},
        "line 6: .*'Linear' cannot have a scheme",
    ),
    (*rate(0, 5, 1e-4, 0, lr_func="sqrt"), "line 6: .*lr_func must be linear or cosine"),
    (*rate(5, 5, 1e-4, 0), "line 8: .*end_epoch must be above start_epoch=5"),
    (*rate(0, 10, 0, 0), "line 5: .*trains nothing"),
    (*rate(0, 10, 1e-4, 0, param_groups="[1]"), r"line 11: .*param_groups a list of 1 cannot"),
    ("TrainableParamsModifier", {"params": "[x]", "trainable": False}, "line 5: .*three tables"),
    ("SetWeightDecayModifier", {"weight_decay": 1, "start_epoch": 3}, "line 5: .*for a part"),
]


@pytest.mark.parametrize(("name", "fields", "sentence"), REFUSED)
def test_what_has_no_counterpart_is_refused_by_name_and_line(
    name: str, fields: Fields, sentence: str
) -> None:
    with pytest.raises(InputError, match=f"^x.yaml, {sentence}"):
        overlay(EPOCHS, (name, fields))


def test_modifiers_that_exclude_one_another() -> None:
    with pytest.raises(InputError, match=r"line 8: .*starts at epoch 4, while the rate of line 2"):
        overlay(rate(0, 5, 1e-4, 0), rate(4, 9, 1e-4, 0))
    with pytest.raises(InputError, match="line 4: DistillationModifier: is the second one"):
        overlay(("DistillationModifier", {"hardness": 1}), ("DistillationModifier", {}))
    with pytest.raises(InputError, match=r"line 12: .*starts at epoch 0, before gradual pruning"):
        overlay(
            EPOCHS,
            ("GMPruningModifier", MAGNITUDE),
            ("ConstantPruningModifier", {"start_epoch": 0, "params": "__ALL_PRUNABLE__"}),
        )
    gone = ("LayerPruningModifier", {"layers": "[bert.encoder.layer.1]"})
    name = f"[bert.encoder.layer.1.{PARTS[0]}.weight, bert.encoder.layer.0.{PARTS[0]}.weight]"
    with pytest.raises(InputError, match=r"line 8: .*params names layer 1, which is dropped"):
        overlay(EPOCHS, gone, ("GMPruningModifier", MAGNITUDE | {"params": name}))
