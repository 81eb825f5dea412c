"""Encoder-decoders of text (T5, Flan-T5, mT5, UMT5).

Shape suffixes: B = rows, S = positions of the source, T = positions of the target, N = supervised
positions, D = width, K = classes, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from gistcli.backbones.base import Layers, Origin, Ran
from gistcli.backbones.layout import Features, TokenLayout
from gistcli.backbones.sites import Output, Site
from gistcli.backbones.source_tokens import Seq2SeqTokens
from gistcli.backbones.supervision import Supervised, supervised_targets
from gistcli.backbones.text import TextBackbone, find_blocks
from gistcli.backbones.text_classes import family_of_class
from gistcli.backbones.text_roles import CROSS
from gistcli.backbones.tokens import SOURCE_GIST
from gistcli.errors import NotSupported


class Seq2Seq(TextBackbone):
    """A network whose decoder writes a target while it looks at an encoded source.

    A batch holds `input_ids` (B, S) and `attention_mask` (B, S) of the source, and of the target
    either `labels` (B, T), -100 where nothing is learnt, or `decoder_input_ids` (B, T); without
    both the decoder reads its start token alone. `labels` stand at the positions that predict them:
    what the decoder reads is the labels, shifted by one behind the start token.

    Blocks are numbered through: the encoder's 0 to L - 1, then the decoder's L to 2 L - 1, so that
    `layers` of a method can name either half. Cross-attention has roles of its own (`cross_query`,
    ...), and with them factors of its own where a method shares factors by role; a target `query`
    names both kinds, as `q` does for PEFT: a recipe written for other families then leaves no
    attention out. `SelfAttention.q` is one kind alone.

    Classification is text-to-text: the class is the label word that the decoder begins with. Its
    `logits` (B, K) are those of the first token of every label word at the decoder's start, and
    `pooled` (B, D) is the decoder's output there. Nothing of it is a trained head. Else `pooled` is
    `tokens` (B, T, D), and `logits` are those of the supervised positions (N, V), in the order of
    `supervised`, or of all (B, T, V) where a batch has no `labels`.

    In half precision, transformers keeps `wo` of fp16 checkpoints in float32, where its products
    overflow (`_keep_in_fp32_modules`); a site takes the dtype of its own module.

    Attributes:
        defers_logits: logits are left out (0, V), for an objective that applies `classify` to the
            supervised positions itself.
    """

    proven: ClassVar[frozenset[str]] = frozenset(
        f"{name}ForConditionalGeneration" for name in ("T5", "MT5", "UMT5")
    )

    def __init__(self, model: nn.Module, origin: Origin) -> None:
        self.defers_logits = False
        super().__init__(model, origin)
        self.task = "classification" if self.label_token_ids else "seq2seq"

    @staticmethod
    def accepts(architecture: str) -> bool:
        """Whether a name is that of an encoder-decoder's class in transformers."""
        return family_of_class(architecture) == "seq2seq"

    def _find_blocks(self) -> list[str]:
        config = self.config
        depths = {"encoder": config.num_hidden_layers, "decoder": config.num_decoder_layers}
        found = []
        for half, depth in depths.items():
            path = find_blocks(getattr(self.hf, half), depth)
            found += [f"{half}.{path}.{number}" for number in range(depth)]
        return found

    def all_sites(self) -> list[Site]:
        """Every linear map of every block that something depends on (`unused_names`)."""
        unused = self.unused_names()
        return [s for s in super().all_sites() if f"{s.module_name}.weight" not in unused]

    def outputs(self) -> list[Output]:
        """Norms and linear maps, without those that nothing depends on."""
        unused = self.unused_names()
        return [o for o in super().outputs() if f"{o.name}.weight" not in unused]

    def sites(self, targets: Sequence[str], layers: Layers = "all") -> list[Site]:
        """As for every backbone; a role of attention names cross-attention, too."""
        roles = {site.role for site in self.all_sites()}
        crossing = [CROSS + target for target in targets if CROSS + target in roles]
        return super().sites([*targets, *crossing], layers)

    def place_for_tokens(self) -> Seq2SeqTokens:
        """Prompts in front of the source, a gist token there or behind the target."""
        return Seq2SeqTokens(self.hf.encoder, self.hf.decoder, self.blocks)

    def read_out(self, features: Features, slot: str) -> Tensor:
        """(B, K): of tokens of the target, or of the source.

        The decoder is what pools a source: for its gist token it looks at that token's output, and
        at nothing else.
        """
        if slot != SOURCE_GIST:
            return super().read_out(features, slot)
        assert isinstance(self.inserted, Seq2SeqTokens)
        states_BSD = self.inserted.source.gist_outputs().mean(dim=1, keepdim=True)
        start = states_BSD.new_full((len(states_BSD), 1), self.config.decoder_start_token_id)
        tokens_BTD = self.decode({"decoder_input_ids": start.long()}, states_BSD)
        return self.classify(tokens_BTD[:, 0])

    def supervised(self, batch: Mapping[str, Tensor]) -> Supervised:
        """The positions of the target that predict a label, and the labels: nothing is shifted."""
        return supervised_targets(batch)

    # --- classes as words -------------------------------------------------------------------

    @property
    def label_token_ids(self) -> list[int]:
        """First token of every class's label word; empty where nothing is classified."""
        return list(getattr(self.config, "label_token_ids", None) or ())

    def set_label_words(self, words: Sequence[str], token_ids: Sequence[int]) -> None:
        """Classify by what the decoder begins with; kept in the configuration, as classes are.

        Args:
            words: of the classes, in their order; none to stop classifying.
            token_ids: the first token of each, all different.
        """
        for name, value in (("label_words", words), ("label_token_ids", token_ids)):
            if value:
                setattr(self.config, name, list(value))
            elif hasattr(self.config, name):
                delattr(self.config, name)
        self.task = "classification" if token_ids else "seq2seq"

    def head_modules(self) -> dict[str, nn.Module]:
        """None: classes are words of the vocabulary."""
        return {}

    def reset_head(self, classes: int, seed: int = 0) -> None:
        """Nothing to make anew: what classifies are the label words."""
        if self.label_token_ids:
            self.hf.num_labels = self.config.num_labels = classes

    def unused_names(self) -> list[str]:
        """What chooses among the decoder's tokens, of which a classifier reads one."""
        if self.task != "classification":
            return []
        choosing = (".SelfAttention.q.weight", ".SelfAttention.k.weight", "_attention_bias.weight")
        names = (name for name, _ in self.model.named_parameters())
        return [n for n in names if n.startswith("decoder.") and n.endswith(choosing)]

    # --- running ----------------------------------------------------------------------------

    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        """Features of a batch; `layout` is that of the decoder."""
        ids_BT = self._decoder_ids(batch)
        layout = TokenLayout({"text": ids_BT.shape[1]}, (0, 0))
        return self.drive(layout, lambda: self.run({**batch, "decoder_input_ids": ids_BT}))

    def run(self, batch: Mapping[str, Tensor]) -> Ran:
        """Tokens of the decoder behind its last norm, pooled, logits."""
        tokens_BTD = self.decode(batch, self.encode(batch))
        if self.task == "classification":
            pooled_BD = tokens_BTD[:, 0]
            return tokens_BTD, pooled_BD, self.classify(pooled_BD)
        if self.defers_logits:
            logits = tokens_BTD.new_empty(0, self.config.vocab_size)
        elif "labels" in batch:
            logits = self.classify(tokens_BTD[self.supervised(batch).where])
        else:
            logits = self.classify(tokens_BTD)
        return tokens_BTD, tokens_BTD, logits

    def encode(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(B, S, D): the source behind the encoder's last norm."""
        states_BSD: Tensor = self.hf.encoder(**self._inputs(batch)).last_hidden_state
        return states_BSD

    def decode(self, batch: Mapping[str, Tensor], states_BSD: Tensor) -> Tensor:
        """(B, T, D): the target behind the decoder's last norm."""
        mask_BS = batch.get("attention_mask")
        tokens_BTD: Tensor = self.hf.decoder(
            input_ids=batch["decoder_input_ids"],
            encoder_hidden_states=states_BSD,
            encoder_attention_mask=None if mask_BS is None else mask_BS.long(),
            use_cache=False,
        ).last_hidden_state
        return tokens_BTD

    def classify(self, pooled: Tensor) -> Tensor:
        """(..., V) of tokens (..., D), scaled as the network does it; or (B, K) of the words."""
        if self._scale != 1.0:
            pooled = pooled * self._scale
        logits: Tensor = self.hf.get_output_embeddings()(pooled)
        # of all words, at one position a text: the weight may be owned, quantised or not in memory
        return logits[..., self.label_token_ids] if self.task == "classification" else logits

    @property
    def _scale(self) -> float:
        """Of the decoder's output in front of the vocabulary: d^-0.5 where T5 v1.0 ties the two."""
        config = self.config
        scaled = getattr(config, "scale_decoder_outputs", None)
        if scaled is None:  # UMT5 scales whenever it ties, mT5 never does
            scaled = config.model_type == "umt5" and config.tie_word_embeddings
        return float(config.d_model**-0.5) if scaled else 1.0

    def _decoder_ids(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(B, T) int64: what the decoder reads.

        Raises:
            NotSupported: packed rows, or classes without label words.
        """
        if "segments" in batch:
            raise NotSupported(
                f"{self.architecture} reads one text a row: its encoder is no causal network.",
                "Set data.packing to false.",
            )
        labels = batch.get("labels")
        if "decoder_input_ids" in batch:
            return batch["decoder_input_ids"]
        if labels is not None and labels.ndim == 2:
            shifted_BT: Tensor = self.hf.prepare_decoder_input_ids_from_labels(labels)
            return shifted_BT
        if labels is not None and self.task != "classification":
            raise NotSupported(
                f"{self.architecture} has no label words to classify with.",
                "Give them with `set_label_words`.",
            )
        ids_BS = batch["input_ids"]
        return torch.full_like(ids_BS[:, :1], self.config.decoder_start_token_id)
