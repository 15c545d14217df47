"""A recipe's QuantizationModifier, of either generation → `quantization`."""

import re
from typing import Any

from toolkit.recipes.plan import Plan, epochs_of
from toolkit.recipes.reading import Modifier, plain, show

# Modules that stay in float32 here, whether the recipe names them or not.
FLOAT_MODULES = re.compile(
    r"(.*\.)?(pooler|classifier|qa_outputs|cls|dropout|Dropout|LayerNorm|Tanh|Softmax|GELU\w*|ReLU"
    r"|\w*(MatMul|BMM|Add)\w*|BertPooler|Identity)"
)

# Modules that stay in float32 here, whether the recipe names them or not.
EMBEDDING_MODULES = re.compile(r"(.*\.)?embeddings|Embedding")


def read_quantization(modifier: Modifier, plan: Plan) -> None:
    plan.is_only(modifier)
    start, _ = epochs_of(modifier)
    modifier.only("end_epoch", (-1.0, -1), "a model that has been rounded stays so")
    freeze = modifier.number("disable_quantization_observer_epoch", None, most=1e6)
    # no BatchNorm and no convolutions in these models; `strict` is about names
    modifier.ignore("freeze_bn_stats_epoch", "exclude_batchnorm", "quantize_conv_activations")
    modifier.ignore("model_fuse_fn_name", "model_fuse_fn_kwargs", "strict")
    for key in ("activation_bits", "weight_bits"):
        modifier.only(key, (8, 8.0), "INT8 has 8 bits")
    modifier.only("reduce_range", (False, 0), "integers have all their 8 bits")
    modifier.only("tensorrt", (False, 0), "inputs have a zero point")
    for key in ("num_calibration_steps", "custom_quantizable_module_types"):
        modifier.only(key, (None,), "ranges are calibrated while training, in linear layers")
    for key in ("activation_qconfig_kwargs", "weight_qconfig_kwargs"):
        modifier.only(key, (None, {}), "observers are the toolkit's")
    for key in ("scheme", "default_scheme"):
        _check_scheme(modifier, key, modifier.take(key, None))
    embeddings = modifier.flag("quantize_embeddings", True)
    modifier.ignore("quantize_embedding_activations", "quantize_linear_activations")
    for key in ("submodules", "ignore", "exclude_module_types"):
        names = modifier.texts(key) if modifier.take(key, None) else []
        embeddings &= _check_modules(modifier, key, names)
    for key in ("scheme_overrides", "submodule_schemes"):
        overrides = modifier.take(key, None) or {}
        if not isinstance(overrides, dict):
            raise modifier.fault(f"must be a mapping; got {show(overrides)}", key)
        for name, scheme in overrides.items():
            if EMBEDDING_MODULES.fullmatch(name):
                embeddings &= _check_scheme(modifier, key, scheme.data)
            elif not FLOAT_MODULES.fullmatch(name):
                raise modifier.fault(f"'{name}' cannot have a scheme of its own here", key)
    plan.note(
        modifier,
        "INT8 are the inputs and weights of the encoder's linear layers, with a scale per output"
        + (", and word embeddings when exported" if embeddings else "")
        + "; the inputs' ranges are calibrated, not averaged; pooler, head, attention's products "
        "and all outputs stay in float32",
    )
    plan.groups["quantization"] = {"start_epoch": float(start), "embeddings": embeddings}
    if freeze is not None and freeze >= 0:
        plan.groups["quantization"]["freeze_epoch"] = float(freeze)
    elif plan.num_epochs is not None:  # never
        plan.groups["quantization"]["freeze_epoch"] = float(plan.num_epochs)


def _check_modules(modifier: Modifier, key: str, names: list[str]) -> bool:
    """Check a list of modules to quantize, or not to; return whether embeddings are."""
    has_embeddings = any(EMBEDDING_MODULES.fullmatch(name) for name in names)
    if key == "submodules":
        whole = {"", "bert", "roberta", "distilbert", "electra"}
        encoders = whole | {f"{name}.encoder" for name in whole} | {"distilbert.transformer"}
        if names and not encoders & set(names):
            raise modifier.fault("must name the encoder, such as bert.encoder", key)
        others = [name for name in names if name not in encoders]
        fine = [n for n in others if FLOAT_MODULES.fullmatch(n) or EMBEDDING_MODULES.fullmatch(n)]
        if len(fine) < len(others):
            wrong = next(name for name in others if name not in fine)
            raise modifier.fault(f"'{wrong}' cannot be chosen: the encoder is, as a whole", key)
        return has_embeddings or not names or bool(whole & set(names))
    for name in names:
        if not FLOAT_MODULES.fullmatch(name) and not EMBEDDING_MODULES.fullmatch(name):
            raise modifier.fault(
                f"'{name}' is computed in INT8 here, or is unknown: quantization.keep_float names "
                "layers that are not",
                key,
            )
    return not has_embeddings


def _check_scheme(modifier: Modifier, key: str, scheme: Any) -> bool:
    """Check a scheme of quantization; return whether weights are quantized."""
    if scheme in (None, "default", "deepsparse"):
        return True
    scheme = plain(scheme)
    if not isinstance(scheme, dict):
        raise modifier.fault(f"{show(scheme)} cannot be carried over", key)
    fits = {"input_activations": False, "weights": True, "output_activations": None}
    for part, one in scheme.items():
        is_symmetric = fits.get(part)
        fields = {"num_bits", "symmetric", "strategy", "kwargs"}
        if part not in fits or (one is not None and not isinstance(one, dict)):
            raise modifier.fault(f"'{part}' cannot be carried over", key)
        if one and (
            set(one) - fields
            or one.get("num_bits", 8) != 8
            or one.get("kwargs")
            or one.get("strategy", "tensor") not in ("tensor", "channel")
            or (is_symmetric is not None and one.get("symmetric", is_symmetric) != is_symmetric)
        ):
            raise modifier.fault(
                f"'{part}' must have 8 bits, weights symmetric, inputs not; it cannot be carried "
                "over",
                key,
            )
    if key in ("scheme", "default_scheme") and not all(
        scheme.get(part, True) for part in ("input_activations", "weights")
    ):
        raise modifier.fault("must quantize inputs and weights", key)
    return bool(scheme.get("weights", True))
