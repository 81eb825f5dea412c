"""Task files to episodes (examples, then queries), and documents to compression segments."""

from gistcli.data.episodes.catalog import open_tasks, tasks_of
from gistcli.data.episodes.family import class_to_label
from gistcli.data.episodes.reading import read_tasks
from gistcli.data.episodes.tasks import Item, Task

__all__ = ["Item", "Task", "class_to_label", "open_tasks", "read_tasks", "tasks_of"]
