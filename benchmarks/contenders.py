"""The same work by several programs: mean and max over the tokens of every layer's FFN activation.

`ours` is spin_native. Its peers are transformers with forward hooks, ONNX Runtime and OpenVINO; the last two run the graph of
the first, pooling included. Each peer's result is compared with transformers before it is timed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from inputs import Rows
from torch import Tensor, nn

import spin_native as sn

# The package's internals: how `extract` cuts rows into batches, and which modules of transformers output activations.
from spin_native.features.extract import token_budget
from spin_native.models import Transformer
from spin_native.parity import activation_functions
from spin_native.text.packing import pack

INPUT_NAMES = ("input_ids", "attention_mask")


def ours(model: Transformer, rows: Rows, depth: int | None = None) -> Callable[[], Any]:
    """All layers (None), or the first `depth`; the rows are sorted and batched as `extract` does."""
    batches = [[rows[row] for row in batch] for batch in pack([len(row) for row in rows], token_budget(model))]
    last = (depth or model.depth) - 1

    @torch.inference_mode()
    def run() -> list[tuple[Tensor, Tensor]]:
        pooled = []
        for batch_rows in batches:
            batch = sn.TokenBatch.from_rows(batch_rows, model.device)
            for layer in model.layers(batch):
                if layer.activation is not None:
                    pooled.append((sn.pooling.mean(layer.activation, batch), sn.pooling.max(layer.activation, batch)))
                if layer.index == last and depth is not None:
                    break
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        return pooled

    return run


class Hooked(nn.Module):
    """A transformers model that returns mean and max over the real tokens of every FFN activation, read by hooks."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.activations: list[Tensor] = []
        for function in activation_functions(base):
            function.register_forward_hook(lambda _module, _inputs, output: self.activations.append(output))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        self.activations.clear()
        self.base(input_ids=input_ids, attention_mask=attention_mask)
        is_real = attention_mask[:, :, None].bool()
        n_tokens = is_real.sum(1)
        means = torch.stack([(a * is_real).sum(1) / n_tokens for a in self.activations])
        return means, torch.stack([a.masked_fill(~is_real, -1e30).amax(1) for a in self.activations])


def padded(rows: Rows) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, [row, position] each."""
    width = max(map(len, rows))
    ids = torch.ones(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = torch.tensor(row), 1
    return ids, mask


def padded_batches(rows: Rows, max_tokens: int | None) -> list[tuple[Tensor, Tensor]]:
    """Batches of 32 rows as they come (None), or sorted by length, with at most `max_tokens` real tokens in each."""
    if max_tokens is None:
        return [padded(rows[start : start + 32]) for start in range(0, len(rows), 32)]
    return [padded([rows[row] for row in batch]) for batch in pack([len(row) for row in rows], max_tokens)]


def hooked_transformers(folder: Path, **options: Any) -> Hooked:
    """A checkpoint in transformers, float32, with hooks. options: of from_pretrained."""
    from transformers import AutoModel

    return Hooked(AutoModel.from_pretrained(folder, dtype=torch.float32, **options).eval())


def run_batches(module: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Callable[[], list[Any]]:
    @torch.inference_mode()
    def run() -> list[Any]:
        return [module(*batch) for batch in batches]

    return run


def peers(folder: Path, rows: Rows, dtype: torch.dtype, max_tokens: int) -> dict[str, Callable[[], Any]]:
    """transformers with hooks in float32; OpenVINO in `dtype`; ONNX Runtime where that is float32.

    folder: a RoBERTa or BERT checkpoint. The sorted batches are as large as ours (`max_tokens`).
    """
    hooked = hooked_transformers(folder, add_pooling_layer=False)
    sample = padded([row[:20] for row in rows[:3]])
    unsorted, sorted_ = padded_batches(rows, None), padded_batches(rows, max_tokens)
    arrays = [dict(zip(INPUT_NAMES, (tensor.numpy() for tensor in batch), strict=True)) for batch in sorted_]

    precision = "bf16" if dtype == torch.bfloat16 else "f32"
    openvino = openvino_model(hooked, sample, precision)
    contenders: dict[str, Callable[[], Any]] = {
        "transformers fp32 with hooks, unsorted": run_batches(hooked, unsorted),
        f"OpenVINO {precision}, sorted": lambda: [openvino(batch) for batch in arrays],
    }
    outputs = {f"OpenVINO {precision}": openvino(arrays[-1])[0]}
    if dtype == torch.float32:
        session = onnx_session(hooked, sample, folder / "pooled.onnx")
        contenders["transformers fp32 with hooks, sorted"] = run_batches(hooked, sorted_)
        contenders["ONNX Runtime, sorted"] = lambda: [session.run(None, batch) for batch in arrays]
        outputs["ONNX Runtime"] = session.run(None, arrays[-1])[0]

    expected = run_batches(hooked, sorted_[-1:])()[0][0].numpy()
    for name, output in outputs.items():
        error = float(np.linalg.norm(output - expected) / np.linalg.norm(expected))
        allowed = 5e-2 if precision == "bf16" else 1e-4
        if error > allowed:
            raise SystemExit(f"{name} differs from transformers by {error:.1e} (relative; allowed: {allowed:.0e}): not a peer")
    return contenders


def openvino_model(module: nn.Module, sample: tuple[Tensor, Tensor], precision: str) -> Any:
    import openvino

    graph = openvino.convert_model(module, example_input=dict(zip(INPUT_NAMES, sample, strict=True)))
    return openvino.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": precision})


def onnx_session(module: nn.Module, sample: tuple[Tensor, Tensor], path: Path) -> Any:
    import onnxruntime

    sizes = {0: torch.export.Dim("row"), 1: torch.export.Dim("position")}
    torch.onnx.export(
        module,
        sample,
        path,
        input_names=list(INPUT_NAMES),
        dynamic_shapes={"input_ids": sizes, "attention_mask": sizes},
        dynamo=True,
        verbose=False,
    )
    return onnxruntime.InferenceSession(path)
