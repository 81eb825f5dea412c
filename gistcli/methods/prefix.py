"""Prefix tuning: trained keys and values in front of every text, in every layer of a decoder.

    attention(q, [K_P; K], [V_P; V])          K_P, V_P trained, K and V of the text

Paper: Li and Liang, arXiv 2101.00190. With `reparameterise` the prefix is [K_P; V_P] = MLP(E) of P
embeddings (their section 4.3), which steadies the optimisation and is left behind at export; the
plain form is that of P-tuning v2 (2110.07602) and of the baseline in HyperLlama's code
(2402.16817), and starts, as there and in PEFT, from N(0, 1).

Shape suffixes: L = layers, H = heads of keys and values, P = positions of the prefix, E = width of
a head, D = width of the network, M = width inside the MLP.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from gistcli.backbones.base import Backbone
from gistcli.backbones.prefix import Prefix, prefix_of
from gistcli.backbones.prefix_file import AXES, merged_into, read_prefix
from gistcli.errors import RecipeError, Refused, WeightsError
from gistcli.methods.base import Capabilities, Method, Recommended, Tuner, full_precision

RUN = "run:"
"""In front of the directory of a run, as `init`."""


class PrefixTuning(Method):
    """Trained keys and values that every token of every text attends to."""

    name: ClassVar[str] = "prefix"
    summary: ClassVar[str] = "trained keys and values in front of the text, in every layer"
    recommended: ClassVar[Mapping[str, Recommended]] = {
        "text": Recommended(lr=1e-2, head_lr=1e-3, weight_decay=0.0, clip_norm=1.0)
    }

    length: Annotated[int, Field(ge=1)] = 16
    """Positions of the prefix. 16 as in HyperLlama's code; Li and Liang use 10 for tables and 200
    for summaries. The parameters are 2 x layers x heads of keys x their width for each."""
    init: Literal["random", "words"] | Path = "random"
    """random: N(0, 1). words: keys and values of random words of the vocabulary, which the paper
    prefers where data is scarce. Or a `prefix.safetensors` to go on from; or run:DIR, what the
    hypernetwork of that run makes of the training examples, or the prefix that it trained."""
    reparameterise: bool = False
    """Train an MLP that yields the prefix, as Li and Liang do; only the prefix is exported. Its
    weights want a smaller rate than a bare prefix: optim.lr 1e-3 or less."""
    hidden: Annotated[int, Field(ge=1)] = 512
    """Width inside that MLP."""

    @field_validator("init")
    @classmethod
    def _names_a_file(cls, init: Path | str) -> Path | str:
        named = isinstance(init, Path) and not str(init).startswith(RUN)
        if named and Path(init).suffix != ".safetensors":
            raise ValueError(f"init is random, words, a FILE.safetensors or run:DIR, found {init}")
        return init

    @property
    def from_run(self) -> Path | None:
        """The run that `init` names."""
        text = str(self.init)
        return Path(text.removeprefix(RUN)) if text.startswith(RUN) else None

    @model_validator(mode="after")
    def _fits_the_form(self) -> Self:
        if self.reparameterise and self.init != "random":
            raise ValueError("init acts without reparameterise only: no MLP yields a given prefix")
        if not self.reparameterise and self.hidden != type(self).model_fields["hidden"].default:
            raise ValueError("hidden acts with reparameterise only")
        return self

    def label(self) -> str:
        """The name, with what differs from the plain form."""
        return f"{self.name} (MLP)" if self.reparameterise else self.name

    def starts_as_base(self) -> bool:
        """No: attention sees the prefix from the start."""
        return False

    def capabilities(self) -> Capabilities:
        """Stays beside the weights, and no gate reaches it."""
        reason = "attention reads it beside each text, and no weight of the network could hold it"
        return Capabilities(merge=reason, gateable=False)

    def attach(self, backbone: Backbone, *, head: bool = True) -> PrefixTuner:
        """Put the prefix in front of every text."""
        return PrefixTuner(self, backbone, head=head)


class PrefixTuner(Tuner):
    """Holds keys and values (L, 1, H, P, E), or the embeddings (P, D) and the MLP behind them."""

    method: PrefixTuning
    instead_of_merging: ClassVar[str] = "Write a folder for PEFT: `gist merge --format peft`."
    keys: nn.Parameter
    values: nn.Parameter

    def __init__(self, method: PrefixTuning, backbone: Backbone, *, head: bool = True) -> None:
        super().__init__(method, backbone, head=head)
        seam = backbone.prefix_seam()
        layers, heads, width = self.shape = seam.shape
        like = next(backbone.model.parameters())
        self.mlp: nn.Sequential | None = None
        if method.reparameterise:
            inside = backbone.require_one_width(method.name)
            embeddings_PD = full_precision((method.length, inside), like).normal_()
            self.embeddings = nn.Parameter(embeddings_PD)
            self.mlp = _mlp(inside, method.hidden, 2 * layers * heads * width, like)
        else:
            shape = (layers, 1, heads, method.length, width)
            self.keys = nn.Parameter(full_precision(shape, like).normal_())
            self.values = nn.Parameter(full_precision(shape, like).normal_())
        seam.add(method.length, lambda rows: self.prefix(), self.switch)

    def prefix(self) -> Prefix:
        """What stands in front of every text now."""
        if self.mlp is None:
            return Prefix(self.keys, self.values)
        layers, heads, width = self.shape
        flat = self.mlp(self.embeddings).view(-1, layers, 2, heads, width)
        keys, values = flat.permute(2, 1, 3, 0, 4)[:, :, None]
        return Prefix(keys, values)

    def start(self) -> None:
        """Take over the prefix of a file, or of random words.

        Raises:
            NotFound, BaseMismatch: as `read_prefix`.
            RecipeError, WeightsError: a file that holds no prefix, or as `take`.
            Refused: a run, which only `gist finetune` asks for its prefix.
        """
        init = self.method.init
        if init == "random":
            return
        if self.method.from_run is not None:
            raise Refused(
                f"method.init: {init} has to be asked for a prefix of the training examples.",
                "Run it by `gist finetune`, or make the file with `gist compress`.",
            )
        fingerprint = self.backbone.fingerprint
        if init == "words":
            self.take(self._of_words())
            return
        tuner = merged_into(self.backbone.origin.config.get("folder"))
        self.take(read_prefix(Path(init), fingerprint, tuner))

    def take(self, found: Prefix) -> None:
        """Go on from a prefix.

        Raises:
            RecipeError: it has another length.
            WeightsError: it has another shape.
        """
        if found.length != self.method.length:
            raise RecipeError(
                f"method.init: {self.method.init} holds a prefix of {found.length} positions, and "
                f"method.length is {self.method.length}.",
                f"Set method.length to {found.length}.",
            )
        for name, own in (("keys", self.keys), ("values", self.values)):
            given: Tensor = getattr(found, name)
            if given.shape != own.shape:
                raise WeightsError(
                    f"method.init: {self.method.init} holds {name} {list(given.shape)}, but here "
                    f"they are {list(own.shape)} ({AXES}).",
                    "Use the model that it was made for.",
                )
            own.data.copy_(given)

    def _of_words(self) -> Prefix:
        """Of random words, one a position, as the network reads them in a row."""
        network: Any = self.backbone.model
        words = len(network.get_input_embeddings().weight)
        ids_BT = torch.randint(words, (1, self.method.length), device=self.keys.device)
        with torch.no_grad(), self.disabled():
            return prefix_of(network, {"input_ids": ids_BT})

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """None of it: the prefix is no weight, and N(0, 1) its natural size."""
        return False


def _mlp(inside: int, hidden: int, out: int, like: Tensor) -> nn.Sequential:
    """Two maps with a tanh between them, in float32."""
    options: dict[str, Any] = {"device": like.device, "dtype": torch.float32}
    return nn.Sequential(
        nn.Linear(inside, hidden, **options), nn.Tanh(), nn.Linear(hidden, out, **options)
    )
