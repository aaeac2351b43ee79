"""One way to round a model, and what the others would have cost."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from torch import Tensor, nn

from optimize import awq, calibration
from optimize.calibration import Calibration
from optimize.config import OptimizeConfig
from optimize.report import relative_error
from optimize.rounding import RoundedLinear, RoundedWeight
from recsys.contracts.errors import ConfigError
from recsys.contracts.ids import Floats
from recsys.contracts.precision import CacheFormat, ItemFormat
from recsys.dataset import Dataset
from recsys.model.checkpoint import Checkpoint
from recsys.model.decoder import SequenceModel
from recsys.model.reference import encode
from recsys.runtime import reference
from recsys.runtime.cuda import DECODER, CudaEngine
from recsys.runtime.items import ItemTable


def calibrate(checkpoint: Checkpoint, data: Dataset, config: OptimizeConfig) -> Calibration:
    """Statistics of windows of the fitted events, which matrices are rounded by; none at 32 bits."""
    if config.weights is None:
        return {}
    windows = calibration.windows(data.fit, checkpoint.window, config.num_calibration_windows, config.seed)
    return calibration.collect(checkpoint.model, windows)


def rounded(checkpoint: Checkpoint, config: OptimizeConfig, statistics: Calibration) -> SequenceModel:
    """The model with its matrices rounded by AWQ; itself at 32 bits."""
    if config.weights is None:
        return checkpoint.model
    folded, scaled = awq.fold(checkpoint.model, statistics, config.weights)
    way = awq.Rounding.COMPENSATED if config.compensate else awq.Rounding.CLIPPED
    return awq.round_weights(folded, scaled, config.weights, way)


def save(model: SequenceModel, folder: Path) -> None:
    """Write `decoder.safetensors`: codes and scales of rounded matrices, everything else in float32."""
    arrays = {name: tensor.contiguous().numpy() for name, tensor in model.decoder.state_dict().items()}
    for name, part in model.decoder.named_modules():
        if isinstance(part, RoundedLinear):
            arrays[f"{name}.input_peak"] = np.array(part.input_peak, dtype=np.float64)
    safetensors.numpy.save_file(arrays, folder / DECODER)


def save_unrounded(model: SequenceModel, vectors_VD: Floats, folder: Path) -> None:
    """Write `float32.safetensors`: the decoder as it was trained and item vectors, row PAD first."""
    decoder = {name: tensor.contiguous().numpy() for name, tensor in model.decoder.state_dict().items()}
    reference.save(decoder, vectors_VD, folder)


def load(checkpoint: Checkpoint, config: OptimizeConfig, folder: Path) -> SequenceModel:
    """The rounded model that `save` wrote."""
    if config.weights is None:
        return checkpoint.model
    arrays = safetensors.torch.load_file(folder / DECODER)
    model = copy.deepcopy(checkpoint.model)
    for name, _ in list(awq.linears(model)):
        codes, scales = arrays[f"{name}.codes"], arrays[f"{name}.scales"]
        weight = RoundedWeight(codes.reshape(len(codes), -1), scales[:, :, 0], config.weights)
        parent, _, leaf = name.rpartition(".")
        linear = RoundedLinear(weight, float(arrays.pop(f"{name}.input_peak")), arrays.get(f"{name}.bias"))
        setattr(model.decoder.get_submodule(parent), leaf, linear)
    model.decoder.load_state_dict(arrays)
    return model


def check_groups(checkpoint: Checkpoint, config: OptimizeConfig) -> None:
    """Refuse what cannot be rounded, before anything is computed.

    Raises:
        ConfigError: a group of inputs does not divide the inputs of a matrix.
    """
    size = config.weights.group_size if config.weights else None
    for name, linear in awq.linears(checkpoint.model):
        if size is not None and linear.in_features % size:
            raise ConfigError(
                f"group_size = {size}: does not divide the {linear.in_features} inputs of {name}; choose a divisor"
            )


def calibrated(data: Dataset, config: OptimizeConfig) -> list[str]:
    """user_ids of those whose windows the weights are rounded by."""
    if config.weights is None:
        return []
    chosen = calibration.users(data.fit, config.num_calibration_windows, config.seed)
    return [data.fit.user_ids[user] for user in chosen]


def precision(config: OptimizeConfig) -> str:
    """In what numbers the release keeps weights and items, in words; what it computes in, its engine knows."""
    weights = "float32"
    if config.weights is not None:
        group = f" in groups of {config.weights.group_size}" if config.weights.group_size else " per channel"
        weights = f"int{config.bits}{group} (AWQ)"
    return f"{weights} weights, {config.items.value} items"


def compare_methods(
    checkpoint: Checkpoint, data: Dataset, config: OptimizeConfig, statistics: Calibration
) -> dict[str, float]:
    """Relative error of the user vector by method, on windows that nothing was calibrated on.

    Items stay in float32 except in the row that is about them.
    """
    if config.weights is None or not config.num_comparison_windows:
        return {}
    model, format_ = checkpoint.model, config.weights
    size, seed = config.num_calibration_windows, config.seed
    others = calibration.others(data.fit, checkpoint.window, size, config.num_comparison_windows, seed)
    folded, scaled = awq.fold(model, statistics, format_)
    compensated = awq.round_weights(folded, scaled, format_, awq.Rounding.COMPENSATED)
    methods: dict[str, Callable[[], SequenceModel]] = {
        "plain rounding": lambda: awq.round_weights(model, statistics, format_, awq.Rounding.NEAREST),
        "AWQ": lambda: awq.round_weights(folded, scaled, format_, awq.Rounding.CLIPPED),
        "AWQ, compensated": lambda: compensated,
        "AWQ, compensated, int8 inputs (W8A8)": lambda: _with_rounded_inputs(copy.deepcopy(compensated)),
        "dynamic int8": lambda: _dynamic(model),
        "items int8 alone": lambda: _with_rounded_items(model),
    }
    reference_BD = encode(model, others)
    errors = {name: relative_error(reference_BD, encode(build(), others)) for name, build in methods.items()}
    return {**errors, "bf16": relative_error(reference_BD, _in_bf16(model, checkpoint.window.most_rows).encode(others))}


def _in_bf16(model: SequenceModel, window_size: int) -> CudaEngine:
    """What is served in bf16: everything in 16 bits but the angles of rotation."""
    items = ItemTable.of(model.embedding.weight.detach().numpy(), ItemFormat.FLOAT32)
    return CudaEngine(
        copy.deepcopy(model),
        items,
        window_size=window_size,
        cache=CacheFormat.FLOAT32,
        precision="bf16",
        device="cpu",
    )


def _with_rounded_inputs(model: SequenceModel) -> SequenceModel:
    """What W8A8 plans compute: inputs of matrices rounded to 8 bits, one static scale each."""

    def rounded_inputs(part: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        assert isinstance(part, RoundedLinear)
        scale = max(part.input_peak, 1e-12) / 127
        return (((inputs[0] / scale).round().clamp(-128, 127) * scale),)

    for part in model.modules():
        if isinstance(part, RoundedLinear):
            part.register_forward_pre_hook(rounded_inputs)
    return model


def _dynamic(model: SequenceModel) -> SequenceModel:
    """Dynamic quantization by torch: int8 weights per tensor, activations rounded at run time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dynamic: SequenceModel = torch.ao.quantization.quantize_dynamic(  # type: ignore[no-untyped-call]
            copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8
        )
    return dynamic


@torch.no_grad()
def _with_rounded_items(model: SequenceModel) -> SequenceModel:
    rounded_items = copy.deepcopy(model)
    vectors = model.embedding.weight.numpy()
    table = ItemTable.of(vectors, ItemFormat.INT8)
    rounded_items.embedding.weight.copy_(torch.from_numpy(table.all_VD()))
    return rounded_items
