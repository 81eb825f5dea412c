"""Language: step time against the floor and PEFT, memory of the loss, what packing saves.

Run: make bench   (writes tests/benchmarks/language.md)
     python -m tests.benchmarks.language --rounds 5 -o FILE

Steps as in `run`, on a Llama of 6 blocks. The loss is measured alone, by the bytes of all tensors
that are alive at once, so that its figures are the same in every run. Packing is measured on real
texts where `../shared/assets` lies beside the checkout, and left out elsewhere.
"""

from __future__ import annotations

import argparse
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from gistcli import registry
from gistcli.backbones.base import Origin
from gistcli.backbones.causal import Causal
from gistcli.methods.base import Method, Tuner
from gistcli.objectives.chunked import choose_chunk, chunked_cross_entropy, logit_bytes
from tests.benchmarks.contenders import FLOOR, Batch, Build, Contender, size_of
from tests.benchmarks.packing import packing_rows
from tests.benchmarks.tables import COLUMNS, conditions, floor_row, header
from tests.benchmarks.timing import describe, measure

MODEL = "Llama: 6 blocks of width 512, 32,000 words, 512 tokens a row"
BATCH, LENGTH, RANK = 2, 512, 16
TARGETS = ("query", "value")
LOSS_TOKENS, LOSS_WIDTH, VOCABULARIES = 2048, 512, (32_000, 128_000)
FREE = 512 * 2**20
"""Bytes that are left for the loss in its table."""


def fresh() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=6,
        num_attention_heads=8,
        vocab_size=32_000,
        max_position_embeddings=LENGTH,
    )
    return transformers.LlamaForCausalLM(config)


def batch() -> Batch:
    """Every token but the first is learnt."""
    torch.manual_seed(1)
    ids = torch.randint(3, 32_000, (BATCH, LENGTH))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def loss_of(model: Any) -> Callable[[], Tensor]:
    """transformers' own forward pass and loss."""
    data = batch()
    return lambda: model(**data, use_cache=False).loss


def floor() -> Contender:
    model = fresh().requires_grad_(False)
    model.model.layers[0].register_forward_pre_hook(lambda _, args: (args[0].requires_grad_(),))
    return Contender(loss_of(model), [], 0, size_of(model))


def ours(name: str, **options: Any) -> Build:
    def build() -> Contender:
        torch.manual_seed(0)
        method: Method = registry.resolve("methods", name)(**options)
        tuner: Tuner = method.attach(Causal(fresh(), Origin(MODEL, "LlamaForCausalLM")))
        objective = registry.resolve("objectives", "causal_lm")(tuner).train()
        data, units = batch(), float(BATCH * (LENGTH - 1))
        parameters = [t.parameter for t in tuner.trainable().values()]
        count, size = sum(p.numel() for p in parameters), size_of(tuner.backbone) + size_of(tuner)
        return Contender(lambda: objective(data, units).total, parameters, count, size, tuner.step)

    return build


def lora() -> Contender:
    """PEFT's."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(fresh(), config).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    count = sum(p.numel() for p in parameters)
    return Contender(loss_of(model), parameters, count, size_of(model))


class Weight(nn.Module):
    """W (O, I) -> W + W phi psi, made anew in every step."""

    def __init__(self, phi_IR: nn.Parameter, psi_RI: nn.Parameter) -> None:
        super().__init__()
        self.phi, self.psi = phi_IR, psi_RI

    def forward(self, w_OI: Tensor) -> Tensor:
        return w_OI + w_OI @ self.phi @ self.psi


def by_weights() -> Contender:
    """GIFT as its authors' code computes it: the tuned weights, then the network."""
    model = fresh().requires_grad_(False)
    shared = {
        name: (nn.Parameter(torch.randn(512, RANK) / 512), nn.Parameter(torch.zeros(RANK, 512)))
        for name in ("q_proj", "v_proj")
    }
    for block in model.model.layers:
        for name, pair in shared.items():
            linear = getattr(block.self_attn, name)
            parametrize.register_parametrization(linear, "weight", Weight(*pair))
    parameters = [p for pair in shared.values() for p in pair]
    count = sum(p.numel() for p in parameters)
    return Contender(loss_of(model), parameters, count, size_of(model))


BUILDS: dict[str, Build] = {
    FLOOR: floor,
    "gift, query and value": ours("gift", rank=RANK, targets=TARGETS),
    "gift, attn_out": ours("gift", rank=RANK, targets=("attn_out",)),
    "GIFT by weights, query and value": by_weights,
    "lora, query and value": ours("lora", rank=RANK, targets=TARGETS),
    "PEFT LoRA, query and value": lora,
}


class Alive(TorchDispatchMode):
    """Counts the bytes of all tensors made inside that are alive at once.

    Args:
        outside: tensors made before, whose views are none of these.

    Attributes:
        peak: the most.
    """

    def __init__(self, *outside: Tensor) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in outside}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        found = function(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else (found,):
            if isinstance(tensor, Tensor):
                self._watch(tensor.untyped_storage())
        return found

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def peak_of_loss(vocabulary: int, chunk: int | None) -> int:
    """Bytes beside the hidden states and the map to the vocabulary, forward and backward."""
    torch.manual_seed(0)
    head = nn.Linear(LOSS_WIDTH, vocabulary, bias=False).requires_grad_(False)
    hidden_ND = torch.randn(LOSS_TOKENS, LOSS_WIDTH, requires_grad=True)
    targets_N = torch.randint(0, vocabulary, (LOSS_TOKENS,))
    with Alive(head.weight, hidden_ND, targets_N) as alive:
        if chunk is None:
            loss = F.cross_entropy(head(hidden_ND).float(), targets_N, reduction="sum")
        else:
            loss, _ = chunked_cross_entropy(hidden_ND, targets_N, head, chunk)
        loss.backward()
    return alive.peak


def loss_rows() -> list[str]:
    rows = []
    for vocabulary in VOCABULARIES:
        chunk = choose_chunk(LOSS_TOKENS, vocabulary, FREE)
        whole, pieces = peak_of_loss(vocabulary, None), peak_of_loss(vocabulary, chunk)
        full = logit_bytes(LOSS_TOKENS, vocabulary)
        cells = (f"{vocabulary:,}", *(f"{n / 1e6:.0f}" for n in (full, whole, pieces)))
        rows.append(f"| {' | '.join((*cells, str(chunk)))} |")
    return rows


def report(rounds: int) -> str:
    counted, _ = describe(BUILDS)
    seconds = measure(BUILDS, rounds, together=True)
    lines = ["# Language: step time, memory of the loss, packing", ""]
    lines += [conditions(rounds, MODEL, BATCH), "", *header(COLUMNS)]
    lines += [floor_row(name, seconds, counted) for name in seconds]
    lines += ["", "## The loss of a large vocabulary", ""]
    lines += [
        f"{LOSS_TOKENS:,} supervised tokens of width {LOSS_WIDTH}, where {FREE / 1e6:.0f} MB are "
        "left: bytes alive at once in forward and backward pass, in MB. Full logits would take "
        "more than half of what is left, so that a run takes pieces by itself.",
        "",
        *header(("vocabulary", "reckoned", "full logits", "in pieces", "tokens a piece")),
        *loss_rows(),
    ]
    packed = packing_rows()
    if packed:
        lines += ["", "## Packing", "", *packed]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    output = Path(__file__).with_name("language.md")
    parser.add_argument("-o", "--output", type=Path, default=output)
    options = parser.parse_args()
    text = report(options.rounds)
    options.output.write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
