"""Pictures on disk to batches on the device: `open_catalog` finds, `load_split` decodes."""

from gistcli.data.base import SPLITS, Catalog, DataOptions, Preprocess, Record
from gistcli.data.cache import check_images
from gistcli.data.catalog import expected_counts, open_catalog
from gistcli.data.images import expand_inputs, read_image
from gistcli.data.split import Batch, ImageSplit, load_images, load_split

__all__ = [
    "SPLITS",
    "Batch",
    "Catalog",
    "DataOptions",
    "ImageSplit",
    "Preprocess",
    "Record",
    "check_images",
    "expand_inputs",
    "expected_counts",
    "load_images",
    "load_split",
    "open_catalog",
    "read_image",
]
