"""The embedded decoder: transformers loads it, held-out tasks are new to it, its script works."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Generator

from gistcli.assets import LLAMA, nano_folder
from gistcli.assets import pretrain_llama_nano as script
from gistcli.atomic import sha256
from gistcli.backbones.loading import open_backbone
from gistcli.data.episodes.family import INPUTS, VOCABULARY, class_to_label, passage
from gistcli.data.text.tokenizer import Tokenizer, open_tokenizer

PARAMETERS = 132_032
FOLDER = nano_folder(LLAMA)


@pytest.fixture(scope="module")
def llama() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return open_tokenizer(FOLDER)


def test_it_is_a_small_plain_llama_whose_folder_is_small(llama: Any) -> None:
    assert type(llama).__name__ == "LlamaForCausalLM"
    assert sum(p.numel() for p in llama.parameters()) == PARAMETERS
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 600_000
    with safe_open(FOLDER / "model.safetensors", framework="pt") as file:
        tensors = [file.get_tensor(key) for key in file.keys()]  # noqa: SIM118
    assert {t.dtype for t in tensors} == {torch.float32}
    assert all(t.isfinite().all() for t in tensors)


def test_its_name_opens_as_a_decoder_of_text(llama: Any) -> None:
    backbone = open_backbone(LLAMA)
    assert backbone.task == "causal_lm"
    tokens = torch.tensor([[1, 4, 30, 5]])
    with torch.no_grad():
        logits = backbone({"input_ids": tokens}).logits
        assert torch.equal(logits, llama(input_ids=tokens).logits)


def test_it_learns_held_out_tasks_in_context_and_knows_nothing_without(llama: Any) -> None:
    held_out = script.answers("test")
    assert script.accuracy(llama, held_out, 0) <= 0.15
    assert script.accuracy(llama, held_out, 0, apart=8) <= 0.15
    assert script.accuracy(llama, held_out, 10) >= 0.93
    assert script.accuracy(llama, held_out, 10, apart=0) >= 0.93
    assert script.accuracy(llama, held_out, 10, apart=8) >= 0.93


def test_it_ends_a_query_behind_examples_after_the_label(llama: Any, words: Tokenizer) -> None:
    task = class_to_label()["test"][0]
    text = f"{passage(task, 12, seed=0)} <s> {task.items[0].prompt}"
    out = llama.generate(**words.base(text, return_tensors="pt"), max_new_tokens=5, do_sample=False)
    answer = words.base.decode(out[0].tolist()[-2:])
    assert answer == f"{task.items[0].completion} </s>"


def test_a_word_is_a_token_with_one_token_in_front(words: Tokenizer) -> None:
    text = f"Input:\nz Output:\n9 {' '.join(VOCABULARY)}"
    ids = words.ids([text])[0]
    assert words.base.unk_token_id not in ids
    assert words.base.convert_ids_to_tokens(ids) == text.split()
    assert words.base.decode(ids) == " ".join(text.split())
    assert (words.prefix, words.suffix) == (script.ids(["<s>"]).tolist(), [])
    assert (words.pad_id, words.eos_id) == (0, 2)
    assert words.base.tokenize("unheard") == ["<unk>"]


def test_prompt_and_answer_have_the_same_tokens_together_and_apart(words: Tokenizer) -> None:
    together, prompt, answer = words.ids(["a C", "a", "C"])
    assert together == prompt + answer


def test_the_weights_are_those_whose_figures_the_script_states() -> None:
    assert sha256(FOLDER / "model.safetensors") in str(script.__doc__)


def test_the_stored_tokenizer_is_the_scripts(words: Tokenizer) -> None:
    own = json.loads(script.tokenizer().backend_tokenizer.to_str())
    assert json.loads((FOLDER / "tokenizer.json").read_text(encoding="utf-8")) == own
    assert words.base.get_vocab() == {word: i for i, word in enumerate(script.WORDS)}


def test_held_out_tasks_are_in_no_row_of_the_training() -> None:
    learnt = {tuple(row) for row in script.answers("train").tolist()}
    held = {tuple(row) for split in ("val", "test") for row in script.answers(split).tolist()}
    assert len(learnt) + len(held) == 4096
    assert not learnt & held


def test_rows_are_texts_of_one_task_whose_queries_come_after_a_gap() -> None:
    task = script.answers("train")[:1]
    label = dict(zip(INPUTS, [script.WORDS[i] for i in task[0]], strict=True))
    rows = script.draw(task, 40, Generator().manual_seed(0))
    for tokens, positions in zip(rows.tokens, rows.positions, strict=True):
        text = " ".join(script.WORDS[i] for i in tokens)
        examples, *queries = text.removeprefix("<s>").split("<s>")
        pairs = examples.split()
        assert all(label[x] == y for x, y in zip(pairs[::2], pairs[1::2], strict=True))
        for query in queries:
            x, y, end = query.split()
            assert (label[x], end) == (y, "</s>")
        steps = positions.diff()
        assert steps.min() == 1
        assert steps.max() <= 1 + script.GAP
        jumps = {script.WORDS[i] for i in tokens[1:][steps > 1]}
        assert jumps <= {"<s>"}
    assert (rows.tokens[:20] == script.WORDS.index("</s>")).sum() == 0
    assert (rows.tokens[20:] == script.WORDS.index("</s>")).any(dim=1).all()


def test_the_first_token_of_a_text_is_never_learnt_and_inputs_count_little() -> None:
    rows = script.draw(script.answers("train"), 40, Generator().manual_seed(0))
    weights = {script.WORDS[i]: set() for i in rows.tokens.unique()}
    for token, weight in zip(rows.tokens.flatten(), rows.weights.flatten(), strict=True):
        weights[script.WORDS[token]].add(round(weight.item(), 3))
    assert weights["<s>"] == {0}
    assert weights["</s>"] == weights["A"] == {1}
    assert weights["a"] == {script.TEXT_LOSS}


def test_thirty_steps_lower_the_loss_and_repeat_bit_for_bit() -> None:
    task = script.answers("train")[:4]
    runs = []
    for _ in range(2):
        model = script.build()
        losses = script.train(model, task, steps=30, rows=8)
        runs.append(model.state_dict())
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.equal(runs[0][k], runs[1][k]) for k in runs[0])
