"""Text in files to batches of tokens: `open_texts` finds, `Encoder` and `load_texts` encode."""

from gistcli.data.text.catalog import examples_of, open_texts, read_unanswered
from gistcli.data.text.collate import collate_prompts
from gistcli.data.text.encoding import IGNORED, Encoded, Encoder
from gistcli.data.text.enough import Enough
from gistcli.data.text.examples import Chat, Completion, Example, Labelled, Message, Plain
from gistcli.data.text.options import TextOptions
from gistcli.data.text.preview import passages
from gistcli.data.text.prompts import answer, encode_prompts
from gistcli.data.text.split import TextSplit, load_texts
from gistcli.data.text.targets import TargetEncoder, encode_sources
from gistcli.data.text.templates import ChatTemplate, open_template
from gistcli.data.text.tokenizer import Tokenizer, open_tokenizer

__all__ = [
    "IGNORED",
    "Chat",
    "ChatTemplate",
    "Completion",
    "Encoded",
    "Encoder",
    "Enough",
    "Example",
    "Labelled",
    "Message",
    "Plain",
    "TargetEncoder",
    "TextOptions",
    "TextSplit",
    "Tokenizer",
    "answer",
    "collate_prompts",
    "encode_prompts",
    "encode_sources",
    "examples_of",
    "load_texts",
    "open_template",
    "open_texts",
    "open_tokenizer",
    "passages",
    "read_unanswered",
]
