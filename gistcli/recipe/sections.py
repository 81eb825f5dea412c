"""The sections of a recipe: every key, its default, its bounds and what it means."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError


def _whole(value: Any) -> Any:
    """`1e4` is a float in YAML and a fine number of steps."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _as_name(value: Any) -> Any:
    """Columns without names have numbers."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _seconds(value: Any) -> Any:
    """`90m` as seconds; other values are left to the validation of a number."""
    match = isinstance(value, str) and re.fullmatch(r"(\d+(?:\.\d*)?) ?([smhd])", value.strip())
    if not match:
        return value
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def _one_or_three(values: list[float]) -> list[float]:
    if len(values) not in (1, 3):
        raise PydanticCustomError(
            "channels", "expected one number or three, found {n}", {"n": len(values)}
        )
    return values


Integer = Annotated[int, BeforeValidator(_whole)]
Count = Annotated[Integer, Field(ge=1)]
Seed = Annotated[Integer, Field(ge=0, lt=2**32)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Name = Annotated[str, Field(min_length=1)]
Metric = Literal[
    "accuracy", "balanced_accuracy", "macro_f1", "top5_accuracy", "f1", "matthews", "loss",
    "pearson", "spearman", "correlation", "perplexity", "accuracy_by_mean", "rouge_l",
]  # fmt: skip


Role = Literal[
    "image", "label", "split", "group", "text", "second_text", "prompt", "completion", "messages",
    "conversations", "system", "tools", "instruction", "input", "output", "answer", "options",
    "task",
]  # fmt: skip
"""What a column of pictures, or of any format of text, can be."""


class Section(BaseModel):
    """Base of all sections: frozen, strict about types, no unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


class TaskSection(Section):
    """What is learnt."""

    type: Literal[
        "auto", "classification", "regression", "causal_lm", "seq2seq", "compression", "hypertuning"
    ] = "auto"
    """The kind of problem; auto follows from model and data and is printed. hypertuning: many
    tasks, of which some are held out whole; compression: parts of documents told from others."""
    name: Name | None = None
    """Which of the `tasks` of a family file."""
    label_words: list[Name] | dict[Name, Name] | None = None
    """What an encoder-decoder writes for each class, in their order or by name; null: the names of
    the classes. The first tokens have to differ."""
    group: Name | None = None
    """The group of tasks whose mean a table shows, such as `natural` of VTAB-1k."""


class ModelSection(Section):
    """The pretrained backbone."""

    name: Name
    """A folder with config.json and weights, an embedded network (`gist_vit_nano` for pictures,
    `gist_llama_nano` for text), a timm name or OWNER/NAME."""
    img_size: Count | Annotated[tuple[Count, Count], Field(strict=False)] | None = None
    """Side, or [height, width], of the images in pixels; null: the model's own."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the frozen weights; auto is float32, for text that of the files. What is trained stays
    float32."""
    quantize: Literal["nf4", "int8"] | None = None
    """Frozen linear maps in 4 or 8 bits, for text (needs `pip install "gistcli[quantised]"`)."""
    drop_path: Fraction = 0.0
    """Stochastic depth at the last block, rising from 0 at the first."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""


class PreprocessSection(Section):
    """What replaces parts of the model's own preparation of pictures; null leaves a part alone."""

    mean: Annotated[list[float], AfterValidator(_one_or_three)] | None = None
    """Per channel, of pixels from 0 to 1."""
    std: Annotated[list[Rate], AfterValidator(_one_or_three)] | None = None
    """Per channel, of pixels from 0 to 1."""
    interpolation: Literal["bicubic", "bilinear", "box", "hamming", "lanczos", "nearest"] | None = (
        None
    )
    """How pictures are resized."""
    crop_pct: Rate | None = None
    """Side of the crop over the shorter side of the resized picture: 0.875 is 224 of 256."""
    crop_mode: Literal["center", "squash", "border"] | None = None
    """squash resizes both sides and cuts nothing off."""


class DataSection(Section):
    """The examples."""

    path: Name
    """A folder of class folders, a CSV/JSON list, a parquet file, or a source name (`digits`); for
    text JSON, JSON lines, CSV, TSV, parquet, text, a folder of such files, or a data set of the
    hub: OWNER/NAME, `glue/sst2`, hf:OWNER/NAME/CONFIGURATION. For hypertuning a folder of task
    files, a file with a column `task`, or `class-to-label`, the built-in tasks."""
    source: Name = "auto"
    """How to read what lies at the path (`gist list sources`); auto: by what it looks like."""
    subset: Name | None = None
    """Which set of a benchmark that lies at the path, such as `cifar` of VTAB-1k."""
    classes: Annotated[Integer, Field(ge=2)] | None = None
    """How many classes there have to be; a dry run without data counts the head by it."""
    splits: Literal["auto"] | dict[Name, Name] = "auto"
    """auto: train, val and test as found; else {train: NAME, val: NAME, test: NAME}, by the names
    of the data or the usual ones; {train: train, test: val} keeps a found validation for the end.
    """
    val_fraction: Fraction = 0.1
    """Share of train that becomes val where the data has none."""
    test_fraction: Fraction = 0.1
    """Share of a single folder or list that becomes test."""
    split_seed: Seed = 0
    """Seed of that division; independent of `seed`."""
    include_val: bool = False
    """Train on the validation examples, too: the last run, when nothing is left to choose."""
    folds: Annotated[Integer, Field(ge=2)] | None = None
    """Divide train and val anew into so many parts, of which `fold` is val."""
    fold: Annotated[Integer, Field(ge=0)] = 0
    """Which of the `folds` is val, from 0."""
    columns: dict[Role, Annotated[Name, BeforeValidator(_as_name)]] | None = None
    """Role -> column of a list or dataset, where they are not called alike: image, label, split,
    group; for text the roles of its format (text, label, prompt, completion, messages, ...); task.
    Numbers count the fields of a table of text without a header line, from 0."""
    group_by: Name | None = None
    """Column of a list or of text, or regular expression over the names of files or tasks, whose
    groups no split divides; `family` goes by what task files say themselves."""
    shots: Count | None = None
    """Training examples per class, drawn by `shot_seed`; null: all."""
    shot_seed: Seed = 0
    """Seed of that draw; independent of `seed`."""
    augment: Literal["none", "flip-crop", "randaugment"] = "none"
    """Augmentation of the training images."""
    on_error: Literal["raise", "skip"] = "raise"
    """Corrupt images, damaged lines and rows of text that cannot be used: stop with the list of
    all of them, or leave them out with a warning."""
    preprocess: PreprocessSection = Field(default_factory=PreprocessSection)
    """What replaces parts of the model's own preparation of pictures."""
    format: Literal["auto", "messages", "sharegpt", "alpaca", "completion", "labelled", "plain"] = (
        "auto"
    )
    """What rows of text are; auto: by their columns."""
    prompt: Literal["auto", "chat", "alpaca", "plain"] = "auto"
    """How an Alpaca row is put: as an exchange through the chat template, under Alpaca's own
    preambles, or as it stands; auto: chat where there is a template, else alpaca."""
    replace: dict[Name, str] | None = None
    """Exact replacements in completions."""
    chat_template: Name = "tokenizer"
    """tokenizer, chatml, or a file with a Jinja template."""
    train_on: Literal["assistant", "last", "all"] = "assistant"
    """Turns of a chat that are learnt: the assistant's, the last of these, or every token."""
    max_length: Annotated[Integer, Field(ge=2)] | None = None
    """Tokens of a sequence; null: what model and tokenizer allow, 2048 at most."""
    max_target_length: Annotated[Integer, Field(ge=2)] | None = None
    """Tokens that an encoder-decoder writes for an example; null: as many as it may read."""
    truncate: Literal["drop", "left", "right"] | None = None
    """Longer examples: drop whole trailing turns, then the example; or cut tokens on a side. null:
    drop for chats and completions, right for labelled texts; documents are cut into pieces."""
    packing: bool = False
    """Several sequences in a row of max_length, none of which sees another."""
    group_by_length: bool = False
    """Batches of similar lengths, where rows are not packed."""

    @model_validator(mode="after")
    def _something_is_left_to_train(self) -> DataSection:
        if self.val_fraction + self.test_fraction >= 1:
            raise PydanticCustomError(
                "fractions", "val_fraction + test_fraction leave nothing to train on"
            )
        return self

    @model_validator(mode="after")
    def _folds_hold(self) -> DataSection:
        if self.folds is not None and self.fold >= self.folds:
            raise PydanticCustomError(
                "fold",
                "fold {n} is not among the {m} folds 0 to {k}",
                {"n": self.fold, "m": self.folds, "k": self.folds - 1},
            )
        if self.folds is not None and self.include_val:
            raise PydanticCustomError("folds", "include_val leaves no fold to validate on")
        return self


class OptimSection(Section):
    """The optimiser; null means what the method recommends."""

    name: Literal["adamw", "sgd"] = "adamw"
    """The optimiser."""
    lr: Rate | None = None
    """Peak learning rate of the method's parameters."""
    head_lr: Rate | None = None
    """Peak learning rate of the new head."""
    weight_decay: NotNegative | None = None
    """Decoupled weight decay of matrices; vectors and biases have none."""
    momentum: Fraction = 0.9
    """Of sgd; adamw ignores it."""
    beta2: Fraction = 0.999
    """Of adamw: how long it remembers squared gradients; 0.99 for short trainings."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rates fall after the warm-up."""
    warmup_ratio: Fraction = 0.1
    """Share of all steps in which the rates rise from 0."""
    clip_norm: NotNegative | None = None
    """Largest norm of the gradient; 0: never clipped."""
    label_smoothing: Fraction = 0.0
    """Probability spread evenly over all classes."""


class TrainSection(Section):
    """How long, on what, in which portions."""

    epochs: Count = 20
    """Passes over the training examples."""
    max_steps: Count | None = None
    """Optimiser steps; wins over `epochs`."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    """auto (a GPU where there is one), cpu, cuda, cuda:N or mps."""
    batch_size: Count = 32
    """Examples per optimiser step, over all processes."""
    micro_batch_size: Literal["auto"] | Count | None = None
    """Examples per forward pass, where a batch does not fit into memory; auto: the most that do.
    The result is the same up to rounding."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the activations; auto is bf16 on a GPU that has it, else fp32."""
    compile: bool = False
    """torch.compile the model."""
    patience: Count | None = None
    """Stop after so many evaluations without a better `eval.metric`."""
    save_steps: Count | None = None
    """Steps between checkpoints; null: one per epoch."""
    keep: Count = 1
    """Checkpoints to keep."""
    max_time: Annotated[Rate | None, BeforeValidator(_seconds)] = None
    """Seconds (or `90m`, `2h`), but at least a step, until the state is saved: exit code 130."""
    deterministic: bool = False
    """Only deterministic kernels on a GPU; a CPU run is exact anyway."""

    @model_validator(mode="after")
    def _micro_batch_fits(self) -> TrainSection:
        size = self.micro_batch_size
        if isinstance(size, int) and size > self.batch_size:
            raise PydanticCustomError(
                "micro_batch",
                "micro_batch_size is larger than batch_size ({n})",
                {"n": self.batch_size},
            )
        return self


class EvalSection(Section):
    """What validation is for; test is read once, at the end."""

    every: Literal["epoch", "none"] | Count = "epoch"
    """When to validate: every epoch, every so many steps, or none."""
    select: Literal["last", "best"] = "last"
    """The weights that are kept and tested."""
    metric: Metric | None = None
    """What best and patience look at; null: accuracy of classes, pearson of values, the loss of a
    language model."""
    positive: Annotated[Name, BeforeValidator(_as_name)] | None = None
    """Of two classes the one that `f1` is of; null: the one that is not the other's `not_`, else
    the second."""
    protocol: Literal["perplexity", "commonsense", "gsm8k", "math", "rank", "rouge"] | None = None
    """What a language model is measured by at the end, besides its loss: answers that it writes
    (commonsense, gsm8k, math: right by the published rules; rouge: ROUGE-L), or the likelihoods of
    given ones (rank). Before the end only where `metric` is one of its figures."""
    limit: Count | None = None
    """The first so many examples of a split go through `protocol`; null: all."""
    max_new_tokens: Count | None = None
    """Of a written answer; null: those of the protocol."""
    batch_size: Count | None = None
    """Examples per forward pass; null: as in training."""
    test: bool = True
    """Whether test is read at the end; a candidate of a sweep leaves it alone."""
    best_test: bool = False
    """Also read test at every evaluation, and report its best as `best_test`, as some papers do."""

    @model_validator(mode="after")
    def _test_is_read(self) -> EvalSection:
        if self.best_test and not self.test:
            raise PydanticCustomError("best_test", "best_test needs test, which is false")
        return self


class OutputSection(Section):
    """Where the results go."""

    dir: Name = "auto"
    """The run directory; auto: runs/METHOD-MODEL-DATA-N, or METHOD-gist-MODEL-DATA-N."""
    report_to: list[Literal["tensorboard", "wandb", "trackio", "mlflow"]] = []
    """Trackers besides metrics.jsonl."""


class Published(Section):
    """The figure in a paper that a recipe stands for."""

    value: float
    """The figure, in the unit of the metric (0.914, not 91.4)."""
    metric: Name
    """Its name, such as test/accuracy."""
    protocol: Name | None = None
    """How it was measured: splits, seeds, selection."""
    parameters: Count | None = None
    """Trained parameters without the head."""
    source: Name | None = None
    """Paper, table and row."""
