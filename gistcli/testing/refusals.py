"""The pairs that `attach` refuses, with a word of the reason. This list may only get shorter."""

from gistcli.testing.kinds import KINDS

WINDOWS = "attends within"
SEQUENCE = "one sequence with the grid of patches"
WIDTHS = "one width in all blocks"
READ = "is never called"
TEXT = "reads text"
PICTURES = "reads pictures"
NO_CACHE = "takes no prefix"

REFUSED: dict[str, dict[str, str]] = {
    "bitfit": {"Llama": "finds nothing to train"},  # it has no bias
    "convpass": {
        "Swin": SEQUENCE,
        "Swin V2": SEQUENCE,
        "Hiera": SEQUENCE,
        "Llama": TEXT,
        "RoBERTa": TEXT,
    },
    "fact": {"EVA02": "squares of one width"},
    "gist": {
        "Swin": WINDOWS,
        "Swin V2": WINDOWS,
        "Hiera": WINDOWS,
    },
    "prefix": {kind.name: NO_CACHE for kind in KINDS.values() if kind.family != "causal"},
    "prompt": {kind.name: PICTURES for kind in KINDS.values() if not kind.text},
    "ssf": {"EVA02": READ, "BEiT": READ, "Swin V2": READ},
    "toast": {
        "EVA02": "reads the weight",
        "BEiT": "reads the weight",
        "Swin": WIDTHS,
        "Swin V2": WIDTHS,
        "Hiera": WIDTHS,
        "Llama": TEXT,
        "RoBERTa": TEXT,
    },
    "vpt": {
        "Swin": WINDOWS,
        "Swin V2": WINDOWS,
        "Hiera": WINDOWS,
        "Llama": TEXT,
        "RoBERTa": TEXT,
    },
}
"""Method, or gist for its token -> kind of backbone -> part of the message."""
