"""What stands in front of a text as a folder: for PEFT, or as one file for transformers alone.

PEFT lays a prefix out as one row a position, in which every layer has its keys and then its values,
head by head; prompts are rows of the width of the embeddings. Both are exact: nothing is computed
but the order of the numbers.

Shape suffixes: P = positions, L = layers, H = heads of keys and values, E = width of a head, D =
width of the embeddings, F = 2 L H E, B = rows, T = tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gistcli import atomic
from gistcli.artifacts import output as outputs
from gistcli.artifacts import verify
from gistcli.artifacts.form import Form
from gistcli.artifacts.merge import finish
from gistcli.artifacts.output import Receipt
from gistcli.artifacts.peft_export import ADAPTER, ADAPTER_CONFIG
from gistcli.artifacts.tensors import Pending, dtype_name, load_tensors, parse_dtype, write_stream
from gistcli.artifacts.text_export import at_tokens
from gistcli.artifacts.verify import Comparison, Reference
from gistcli.backbones.causal import Causal, last_real
from gistcli.backbones.prefix import Prefix, cache_name
from gistcli.backbones.prefix_file import FILE, Made, metadata_of
from gistcli.backbones.streaming import compute, is_empty
from gistcli.errors import NotMergeable, Refused
from gistcli.methods.base import Tuner
from gistcli.methods.prefix import PrefixTuner
from gistcli.methods.prompt import PromptTuner

EMBEDDINGS = "prompt_embeddings"
HEAD = "base_model."
NOT_SERVED = "vLLM serves no prefixes and prompts: load this folder with PEFT, on transformers."


@dataclass(frozen=True)
class Front:
    """What stands in front of every text.

    Attributes:
        embeddings: (P, F) of a prefix, (P, D) of prompts, as PEFT lays them out.
        prefix: keys and values; None for prompts.
        head: trained tensors of a classifier, by their names in the network.
    """

    embeddings: Tensor
    prefix: Prefix | None = None
    head: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """P."""
        return len(self.embeddings)


def front_of(tuner: Tuner) -> Front | None:
    """What a method keeps in front of the text; None for every other method."""
    head = {n: p.detach() for n, (p, group) in tuner.owned.items() if group == "head"}
    if isinstance(tuner, PrefixTuner):
        with torch.no_grad():
            prefix = tuner.prefix()
        return Front(flattened(prefix), prefix, head)
    if isinstance(tuner, PromptTuner):
        return Front(tuner.prompt.detach(), None, head)
    return None


def flattened(prefix: Prefix) -> Tensor:
    """(P, F) of a prefix that is the same in all rows."""
    both_L2HPE = torch.stack([prefix.keys[:, 0], prefix.values[:, 0]], dim=1)
    return both_L2HPE.permute(3, 0, 1, 2, 4).flatten(1).detach()


def unflattened(embeddings_PF: Tensor, layers: int, heads: int) -> Prefix:
    """The prefix behind what PEFT stores."""
    parts = embeddings_PF.view(len(embeddings_PF), layers, 2, heads, -1).permute(2, 1, 3, 0, 4)
    keys, values = parts[:, :, None]
    return Prefix(keys, values)


def peft_config(front: Front, base_name: str, task: str, network: Any) -> dict[str, Any]:
    """The content of adapter_config.json.

    Args:
        front: what is written.
        base_name: for `base_model_name_or_path`.
        task: CAUSAL_LM or SEQ_CLS.
        network: configuration of the base.
    """
    heads, width = network.num_attention_heads, front.embeddings.shape[1]
    own: dict[str, Any] = {"peft_type": "PROMPT_TUNING", "prompt_tuning_init": "RANDOM"}
    if front.prefix is not None:
        heads = front.prefix.keys.shape[2]
        width = heads * front.prefix.keys.shape[4]  # of keys, which fewer heads share (GQA)
        own = {
            "peft_type": "PREFIX_TUNING",
            "prefix_projection": False,
            "encoder_hidden_size": width,
        }
    return {
        **own,
        "task_type": task,
        "base_model_name_or_path": base_name,
        "num_virtual_tokens": front.length,
        "num_layers": network.num_hidden_layers,
        "num_attention_heads": heads,
        "token_dim": width,
        "num_transformer_submodules": 1,
        "modules_to_save": sorted({n.split(".")[0] for n in front.head}) or None,
        "inference_mode": True,
    }


def export_front(
    tuner: Tuner,
    kind: str,
    base_name: str,
    form: Form,
    output: Path,
    *,
    dtype: str | None = None,
    scale: float = 1.0,
    reference: Reference | None = None,
    max_drift: float | None = None,
    verified: bool = True,
    card: Callable[[Receipt], str] | None = None,
) -> Receipt:
    """Write what stands in front of the text, and check it on the plain network.

    Args:
        tuner: of the method prefix or prompt, on a decoder.
        kind: peft, or prefix for `prefix.safetensors`.
        base_name: of the network that it belongs to.
        form: of the base, for the files that lie beside an adapter.
        output, reference, max_drift, verified, card: as for `merge_weights`.
        dtype: of the written tensors; None for float32.
        scale: 1; there is nothing between with and without.

    Raises:
        NotMergeable: the form cannot hold it.
        Refused, VerificationFailed, StorageError: as `merge_weights`.
    """
    backbone, front = require_front(tuner, kind)
    if scale != 1:
        raise Refused("What stands in front of a text has no scale.", "Leave --scale out.")
    return write_front(
        backbone,
        front,
        kind,
        base_name,
        form,
        output,
        plain=lambda: _without(tuner),
        dtype=dtype,
        reference=reference,
        max_drift=max_drift,
        verified=verified,
        card=card,
    )


def write_front(
    backbone: Causal,
    front: Front,
    kind: str,
    base_name: str,
    form: Form,
    output: Path,
    *,
    plain: Callable[[], AbstractContextManager[None]],
    dtype: str | None = None,
    reference: Reference | None = None,
    max_drift: float | None = None,
    verified: bool = True,
    card: Callable[[Receipt], str] | None = None,
    made: Made | None = None,
) -> Receipt:
    """Write what stands in front of a text, and check it on the network that it is for.

    Args:
        backbone: the network.
        front: what is written.
        plain: inside, the network is the one that reads what is written, with nothing in front.
        made: how a hypernetwork made the prefix; goes into `prefix.safetensors`.
        kind, base_name, form, output, dtype, reference, max_drift, verified, card: as for
            `export_front`.

    Raises:
        Refused, VerificationFailed, StorageError: as `merge_weights`.
    """
    verify.require_checkable(verified, reference, max_drift)
    target = torch.float32 if dtype is None else parse_dtype(dtype)
    tensors, metadata = _contents(backbone, front, kind, base_name, made)
    name = FILE if kind == "prefix" else ADAPTER
    with outputs.export_folder(output, backbone.origin.weights) as folder:
        if kind == "peft":
            task = form.peft_task or "SEQ_CLS"
            config = peft_config(front, base_name, task, backbone.config)
            atomic.write_json(folder / ADAPTER_CONFIG, config)
            form.write_beside_adapter(folder)
        pending = [Pending(n, target, _cast(t, target)) for n, t in tensors.items()]
        written = write_stream(folder / name, pending, metadata)
        found = None
        if verified:
            verify.verify_file(folder / name, written)
        if verified and reference is not None:
            stored = load_tensors(folder / name)
            found = _compare(plain, backbone, front, stored, reference)
            exact = target == _computes_in(backbone) == torch.float32
            verify.require_close(found.difference, exact=exact, max_drift=max_drift)
        receipt = Receipt(
            output=output,
            format=kind,
            dtype=dtype_name(target),
            tensors={"new": len(tensors)},
            max_abs_logit_difference=None if found is None else found.difference,
            agreement=None if found is None else found.agreement,
            verified=verified,
            notes=(NOT_SERVED,) if kind == "peft" else (),
            files=sorted(entry.name for entry in folder.iterdir()),
        )
        finish(folder, receipt, card)
    return receipt


def require_front(tuner: Tuner, kind: str) -> tuple[Causal, Front]:
    """The network, and what stands in front of its texts.

    Raises:
        NotMergeable: the method keeps nothing there, or the format cannot hold it.
    """
    front, backbone = front_of(tuner), tuner.backbone
    if front is None or (kind == "prefix" and front.prefix is None):
        raise NotMergeable(
            f"{tuner.method.name} trains no keys and values, which is what --format prefix writes.",
            "`gist merge` without --format, or --format peft, may be what you want.",
        )
    if not isinstance(backbone, Causal):
        raise NotMergeable(
            f"PEFT puts prompts in front of everything, and in {backbone.architecture} they stand "
            "behind the first token.",
            "Keep the run directory, which `gist eval` and `gist predict` take.",
        )
    if kind == "prefix" and front.head:
        raise NotMergeable(
            "prefix.safetensors has no place for the head of a classifier.", "Use --format peft."
        )
    return backbone, front


def _contents(
    backbone: Causal, front: Front, kind: str, base_name: str, made: Made | None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by stored name, and what stands beside them."""
    if kind == "prefix":
        assert front.prefix is not None
        tensors = {"keys": front.prefix.keys, "values": front.prefix.values}
        return tensors, metadata_of(backbone.fingerprint, base_name, front.length, made)
    head = {f"{HEAD}{name}": tensor for name, tensor in front.head.items()}
    return {EMBEDDINGS: front.embeddings, **head}, {"format": "pt"}


def _cast(tensor: Tensor, dtype: torch.dtype) -> Callable[[], Tensor]:
    return lambda: tensor.detach().cpu().to(dtype).contiguous()


def _compare(
    plain: Callable[[], AbstractContextManager[None]],
    backbone: Causal,
    front: Front,
    stored: Mapping[str, Tensor],
    reference: Reference,
) -> Comparison:
    """The plain network with what was read back, called as transformers and PEFT do, without us."""
    if "keys" in stored:
        prefix: Prefix | None = Prefix(stored["keys"].float(), stored["values"].float())
    elif front.prefix is not None:
        layers, _, heads, _, _ = front.prefix.keys.shape
        prefix = unflattened(stored[EMBEDDINGS].float(), layers, heads)
    else:
        prefix = None
    inputs = reference.inputs
    assert isinstance(inputs, Mapping)

    def logits() -> Tensor:
        if prefix is not None:
            given = _behind_prefix(backbone, prefix, inputs)
        else:
            given = _behind_prompts(backbone, stored[EMBEDDINGS].float(), inputs)
        mask_BT = inputs["attention_mask"]
        tokens_BTD = backbone.base(**given).last_hidden_state[:, -mask_BT.shape[1] :]
        if backbone.task == "classification":
            return backbone.classify(last_real(tokens_BTD, mask_BT))
        return backbone.classify(at_tokens(tokens_BTD, inputs))

    with plain():
        found = compute(backbone.model, logits)
    return verify.compare(found.float().cpu(), reference.logits.detach().float().cpu())


def _behind_prefix(
    backbone: Causal, prefix: Prefix, inputs: Mapping[str, Tensor]
) -> dict[str, Any]:
    ids_BT, mask_BT = inputs["input_ids"], inputs["attention_mask"].long()
    return {
        "input_ids": ids_BT,
        "attention_mask": F.pad(mask_BT, (prefix.length, 0), value=1),
        "position_ids": (mask_BT.cumsum(1) - 1).clamp(min=0) + prefix.length,
        cache_name(backbone.network): prefix.cache(
            backbone.config, len(ids_BT), _computes_in(backbone)
        ),
    }


def _behind_prompts(
    backbone: Causal, prompt_PD: Tensor, inputs: Mapping[str, Tensor]
) -> dict[str, Any]:
    ids_BT, mask_BT = inputs["input_ids"], inputs["attention_mask"].long()
    words_BTD = backbone.base.get_input_embeddings()(ids_BT)
    front_BPD = prompt_PD.to(words_BTD).expand(len(ids_BT), -1, -1)
    mask_BS = F.pad(mask_BT, (len(prompt_PD), 0), value=1)
    return {
        "inputs_embeds": torch.cat([front_BPD, words_BTD], dim=1),
        "attention_mask": mask_BS,
        "position_ids": mask_BS.cumsum(1) - 1,
    }


def _computes_in(backbone: Causal) -> torch.dtype:
    """Of the network in memory; float32 where its weights are read from the disk for that."""
    first = next(backbone.model.parameters())
    return torch.float32 if is_empty(first) else first.dtype


@contextmanager
def _without(tuner: Tuner) -> Iterator[None]:
    """Nothing in front of the text, and the trained head where it is."""
    was, tuner.switch.enabled = tuner.switch.enabled, False
    try:
        yield
    finally:
        tuner.switch.enabled = was
