"""What a model will see of an example, with what it learns marked."""

from __future__ import annotations

from itertools import groupby

from gistcli.data.text.encoding import IGNORED, Encoded
from gistcli.data.text.tokenizer import Tokenizer


def passages(encoded: Encoded, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """The text of a sequence in order, cut where learnt (True) and not learnt tokens change."""
    if encoded.apart:
        parts = ((encoded.input_ids, False), (encoded.labels, True))
        return [(str(tokenizer.base.decode(ids.tolist())), learnt) for ids, learnt in parts]
    marked = zip(encoded.input_ids.tolist(), (encoded.labels != IGNORED).tolist(), strict=True)
    found = []
    for learnt, tokens in groupby(marked, key=lambda token: token[1]):
        ids = [token for token, _ in tokens]
        found.append((str(tokenizer.base.decode(ids, skip_special_tokens=False)), learnt))
    return found
