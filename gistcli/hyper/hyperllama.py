"""HyperLlama: a network that reads examples and leaves a soft prefix for the same network, frozen.

A method of the registry is attached to a decoder and acts on context and gist tokens alone. Their
keys and values at the gists, in every layer, are the prefix behind which the network as it was
answers queries; all that is learnt is learnt through them:

    K, V = network with the method([examples; g_1 ... g_G])  at the gists
    loss = CE(network(query | K, V), answer)

In training both happen in one pass, in which a gate lets the method act on some tokens and
`gisting` lets queries see the gists alone; the same in two passes (`compress`, then a text behind
the prefix) is how prefixes are made and used.

Paper: arXiv 2402.16817, whose mask is that of two passes; `adapt_downstream`, a second copy of the
method on the queries, is our reading of its "downstream adaptation". Shape suffixes: B = rows,
T = tokens, G = gists, D = width of the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from gistcli.backbones.base import Backbone
from gistcli.backbones.causal import Causal
from gistcli.backbones.layout import Features
from gistcli.backbones.prefix import Prefix, prefix_of
from gistcli.backbones.rotary import at_zero, require_movable
from gistcli.backbones.sites import Site, Switch
from gistcli.errors import NotSupported, Refused
from gistcli.hyper import gisting
from gistcli.hyper.batches import VIEWS, divided, seen, with_gists
from gistcli.hyper.composed import ComposedTuner
from gistcli.hyper.probing import evaluating, unreached
from gistcli.hyper.starting import GISTS, read_start
from gistcli.methods.base import Criterion, Trained, Tuner, full_precision
from gistcli.methods.merged import Merged

if TYPE_CHECKING:
    from gistcli.hyper.section import WithHyper


class HyperTuner(ComposedTuner):
    """Holds the gists (G, D), the method's tuner, and a second one where queries are adapted to.

    Between calls, and inside `prefix_in_use`, the network reads texts as such: the method is off
    (it is on where nothing is compressed), and the second one on. `forward` on a batch with `spans`
    leaves gates behind that stay until backward is over, and end with `step`.
    """

    method: WithHyper
    prefixes: ClassVar[Mapping[str, str]] = {"inner": "hyper.", "downstream": "downstream."}
    inner: Tuner
    instead_of_merging: ClassVar[str] = "Make a prefix of your examples: `gist compress`."

    def __init__(self, method: WithHyper, backbone: Backbone, *, head: bool = True) -> None:
        super().__init__(method, backbone, head=False)
        network, hyper = _require_decoder(backbone), method.hyper
        self.front = Switch()
        self.front.enabled = False
        self._prefix: Prefix | None = None
        self._dead: frozenset[str] | None = None
        if hyper.compresses:
            require_movable(network)
            network.prefix_seam().add(hyper.gists, self._in_front, self.front)
        self.inner = method.inner.attach(backbone, head=head)
        self.owned, self.sites = self.inner.owned, self.inner.sites
        self.gists: nn.Parameter | None = None
        if hyper.compresses:
            self.gists = nn.Parameter(_random_words(network, hyper.gists))
        self.downstream: Tuner | None = None
        if hyper.adapt_downstream:
            self.downstream = method.inner.attach(backbone, head=False)
        self._rest()

    @property
    def network(self) -> Causal:
        """The decoder."""
        backbone = self.backbone
        assert isinstance(backbone, Causal)
        return backbone

    def _in_front(self, rows: int) -> Prefix:
        assert self._prefix is not None, "a prefix in use"
        return self._prefix

    # --- running ----------------------------------------------------------------------------

    def forward(self, batch: Mapping[str, Tensor]) -> Features:
        """With `spans` one pass over examples, gists and queries; else a text, behind a prefix.

        Args:
            batch: `input_ids`, `attention_mask` and `spans` (B, T) of `gisting`; what stands at
                gists is not read. Or a text, without `spans`.
        """
        spans = batch.get("spans")
        if spans is None:
            self._rest()
            return self._features(batch)
        given: Mapping[str, Tensor] = seen(batch, VIEWS[self.method.hyper.context](spans))
        if self.gists is None:
            self._rest()
        else:
            gate = gisting.gate(spans)
            self._act(gate, 1 - gate)
            given = self._embedded(given)
        with self._nothing_in_front():
            return self._features(given)

    def _features(self, batch: Mapping[str, Tensor]) -> Features:
        features: Features = self.backbone(batch)
        return features

    def in_context(self, batch: Mapping[str, Tensor]) -> Features:
        """What the network without any of this answers with the examples themselves in sight.

        The teacher of distillation, and few-shot prompting to compare with. Without gradients.
        """
        return self._untouched(batch, gisting.full_context(batch["spans"]))

    def alone(self, batch: Mapping[str, Tensor]) -> Features:
        """What it answers without examples, nor anything else in front. Without gradients."""
        return self._untouched(batch, gisting.queries_alone(batch["spans"]))

    def _untouched(self, batch: Mapping[str, Tensor], spans: Tensor) -> Features:
        with torch.no_grad(), self.disabled():
            return self._features(seen(batch, spans))

    def _embedded(self, given: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """With embeddings in place of ids, the gists among them; the base knows none."""
        if self.gists is None or not self.switch.enabled:
            return given
        words_BTD = self.network.base.get_input_embeddings()(given["input_ids"])
        return {**given, "inputs_embeds": with_gists(words_BTD, self.gists, given["spans"])}

    # --- prefixes ---------------------------------------------------------------------------

    def compress(self, batch: Mapping[str, Tensor], grad: bool = False) -> Prefix:
        """The prefix of every row's examples, as it stands at the beginning of a text.

        Args:
            batch: `input_ids`, `attention_mask` and `spans` (B, T) of context and G gists; rows may
                differ in length, with padding on either side.
            grad: keep the graph.

        Raises:
            NotSupported: nothing is compressed, or activations are recomputed in backward.
            Refused: a row with another number of gists.
        """
        length = self.method.hyper.gists
        found = (batch["spans"] == gisting.GIST).sum(1).unique().tolist()
        if found != [length]:
            raise Refused(
                f"Rows have {found} gist tokens, and the hypernetwork has {length}.",
                "Put as many behind the examples as hyper.gists says.",
            )
        return at_zero(self.network, self._compressed(batch, grad))

    def _compressed(self, batch: Mapping[str, Tensor], grad: bool) -> Prefix:
        """The prefix where it stands, behind the context."""
        self._require_compressing()
        spans, length = batch["spans"], self.method.hyper.gists
        self._act(None, None)
        try:
            with torch.set_grad_enabled(grad), self._nothing_in_front():
                arguments = self.network.arguments(self._embedded(seen(batch, spans)))
                places = gisting.gist_places(spans, length)
                prefix = prefix_of(self.network.hf, arguments, places)
        finally:
            self._rest()
        start = gisting.front_length(spans) - length
        return Prefix(prefix.keys, prefix.values, start)

    @contextmanager
    def prefix_in_use(self, prefix: Prefix | None) -> Iterator[None]:
        """Inside, this stands in front of every text, written or read; None for nothing.

        Args:
            prefix: for each row of the texts, or one for all of them.

        Raises:
            Refused: a prefix of another shape.
        """
        if prefix is not None:
            self._require_fitting(prefix)
        before = self._prefix, self.front.enabled
        self._prefix = prefix
        self.front.enabled = prefix is not None and self.switch.enabled
        self._rest()
        try:
            yield
        finally:
            self._prefix, self.front.enabled = before

    def two_pass(self, batch: Mapping[str, Tensor]) -> Features:
        """`forward` in the way prefixes are used: the examples first, then the queries behind.

        Returns:
            those of the queries, which stand in rows of their own; logits as in `forward`.

        Raises:
            NotSupported: as `compress`.
        """
        front, queries = divided(batch)
        prefix = self._compressed(front, torch.is_grad_enabled())
        with self.prefix_in_use(prefix):
            return self._features(queries)

    # --- who acts ---------------------------------------------------------------------------

    def _act(self, gate: Tensor | None, rest: Tensor | None) -> None:
        """The method acts where `gate` is open, everywhere without one; the second at `rest`."""
        self.inner.switch.enabled, self.inner.switch.gate = self.switch.enabled, gate
        if self.downstream is not None:
            second = self.downstream.switch
            second.enabled, second.gate = self.switch.enabled and rest is not None, rest

    def _rest(self) -> None:
        """As texts are read."""
        compresses = self.method.hyper.compresses
        self.inner.switch.enabled = self.switch.enabled and not compresses
        self.inner.switch.gate = None
        if self.downstream is not None:
            second = self.downstream.switch
            second.enabled, second.gate = self.switch.enabled, None

    @contextmanager
    def _nothing_in_front(self) -> Iterator[None]:
        was, self.front.enabled = self.front.enabled, False
        try:
            yield
        finally:
            self.front.enabled = was

    @contextmanager
    def step(self) -> Iterator[None]:
        """The methods' steps; at its end the network reads texts again."""
        self._rest()
        try:
            with super().step():
                yield
        finally:
            self._rest()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside, the backbone computes what it computed before `attach`, bit for bit."""
        with self._nothing_in_front(), super().disabled():
            yield

    # --- what is trained --------------------------------------------------------------------

    def trainable(self) -> dict[str, Trained]:
        """`hyper.…` of the method, `hyper.gists`, and `downstream.…` of the second copy."""
        own = {} if self.gists is None else {GISTS: Trained(self.gists, "gist", False)}
        return {**super().trainable(), **own}

    def idle(self) -> set[str]:
        """Those of the methods, and what acts in the last layer behind the keys and values."""
        if self.gists is None:
            return super().idle()
        if self._dead is None:
            with evaluating(self, self.network.model):
                self._dead = unreached(self.inner, self._tiny_prefix)
        return super().idle() | {f"hyper.{name}" for name in self._dead}

    def _tiny_prefix(self) -> Prefix:
        """Of one token, with its graph."""
        device = next(self.network.model.parameters()).device
        spans = torch.full((1, 1 + self.method.hyper.gists), gisting.GIST, device=device)
        spans[:, 0] = gisting.CONTEXT
        return self._compressed({"input_ids": torch.zeros_like(spans), "spans": spans}, True)

    def start(self) -> None:
        """The methods' start, then the state of `hyper.init`, where there is one.

        Raises:
            NotFound, WeightsError, BaseMismatch, NotSupported: as `read_start`.
        """
        super().start()
        path = self.method.hyper.init
        if path is not None:
            own = self.state()
            self.load_state({**own, **read_start(path, own, self.backbone.fingerprint)})

    def auxiliary(
        self, features: Features, batch: Mapping[str, Tensor], criterion: Criterion, share: float
    ) -> dict[str, Tensor]:
        """The method's terms."""
        return self.inner.auxiliary(features, batch, criterion, share)

    # --- leaving ----------------------------------------------------------------------------

    def _reader(self) -> Tuner | None:
        """The tuner that acts on texts, whose weights a merged network has; None without one."""
        return self.downstream if self.method.hyper.compresses else self.inner

    def merge_refusal(self) -> str | None:
        """The reader's reason, or that there is none."""
        reader = self._reader()
        return super().merge_refusal() if reader is None else reader.merge_refusal()

    def _merged(self, head: Mapping[str, Tensor]) -> Merged:
        reader = self._reader()
        assert reader is not None, "merge_refusal says so"
        return reader._merged(head)

    def clusters(self, site: Site) -> Tensor:
        """The method's, (d_out, M)."""
        return self.inner.clusters(site)

    def detach(self) -> None:
        """Leave the backbone as it was before `attach`, however far that came."""
        if "front" in self.__dict__:
            self.front.release()
        super().detach()

    # --- what is refused --------------------------------------------------------------------

    def _require_compressing(self) -> None:
        if self.gists is None:
            raise NotSupported(
                f"hyper.context: {self.method.hyper.context} makes no prefixes.",
                "Train with hyper.context: gists.",
            )
        network = self.network.model
        recomputes = any(getattr(m, "gradient_checkpointing", False) for m in network.modules())
        if network.training and recomputes:
            raise NotSupported(
                "Keys and values are not kept where activations are recomputed in backward.",
                "Train in a single pass (a batch with spans), or leave out "
                "model.grad_checkpointing.",
            )

    def _require_fitting(self, prefix: Prefix) -> None:
        self._require_compressing()
        layers, heads, width = self.network.prefix_seam().shape
        wanted = [layers, heads, self.method.hyper.gists, width]
        found = [*prefix.keys.shape[:1], *prefix.keys.shape[2:]]
        if found != wanted:
            raise Refused(
                f"The prefix has {found} layers, heads, positions and width of a head, and the "
                f"hypernetwork makes {wanted}.",
                "Use a prefix of this run, or of one with the same hyper.gists and model.",
            )


def _require_decoder(backbone: Backbone) -> Causal:
    if not isinstance(backbone, Causal) or backbone.task == "classification":
        raise NotSupported(
            f"A hypernetwork makes prefixes for a decoder that predicts tokens, and "
            f"{backbone.architecture} is none.",
            "Leave the section hyper out, or use a causal language model.",
        )
    return backbone


def _random_words(network: Causal, length: int) -> Tensor:
    """(G, D) float32: the embeddings of different words, drawn from the whole vocabulary."""
    table: nn.Module = network.base.get_input_embeddings()
    weight: Tensor = table.weight  # type: ignore[assignment]
    words = len(weight)
    ids_G = torch.randperm(words)[torch.arange(length) % words]
    with torch.no_grad():
        found_GD: Tensor = table(ids_G.to(weight.device))
    return full_precision(found_GD.shape, found_GD).copy_(found_GD)
