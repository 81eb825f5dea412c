"""Task files to episodes (examples, then queries), and documents to compression segments.

`open_tasks` finds tasks and holds some out whole; `EpisodeSplit` draws training episodes of them,
`held_out` makes the fixed ones of evaluation, and `SegmentSplit` cuts documents. All of them are
laid out as rows whose `spans` say what is context, gist and query (`layout`).
"""

from gistcli.data.episodes.catalog import open_tasks, tasks_of
from gistcli.data.episodes.drawing import Drawn
from gistcli.data.episodes.encoding import EpisodeEncoder
from gistcli.data.episodes.family import class_to_label, passages
from gistcli.data.episodes.held_out import (
    MOST_QUERIES,
    Candidates,
    as_queries,
    candidates,
    demonstrate,
    held_out,
)
from gistcli.data.episodes.layout import CONTEXT, GIST, PADDING, QUERY, Episode, Query, lay_out
from gistcli.data.episodes.options import EpisodeOptions
from gistcli.data.episodes.reading import read_tasks
from gistcli.data.episodes.rows import Rows, longest_rows
from gistcli.data.episodes.segments import SegmentSplit
from gistcli.data.episodes.split import EpisodeSplit, Fit
from gistcli.data.episodes.tasks import Item, Task
from gistcli.data.episodes.wrong import WrongDocuments

__all__ = [
    "CONTEXT",
    "GIST",
    "MOST_QUERIES",
    "PADDING",
    "QUERY",
    "Candidates",
    "Drawn",
    "Episode",
    "EpisodeEncoder",
    "EpisodeOptions",
    "EpisodeSplit",
    "Fit",
    "Item",
    "Query",
    "Rows",
    "SegmentSplit",
    "Task",
    "WrongDocuments",
    "as_queries",
    "candidates",
    "class_to_label",
    "demonstrate",
    "held_out",
    "lay_out",
    "longest_rows",
    "open_tasks",
    "passages",
    "read_tasks",
    "tasks_of",
]
