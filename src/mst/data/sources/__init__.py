"""Sources of images: bytes by position, from files and from arrays; each other kind is one more module here."""

from mst.data.files.kinds import EXTENSIONS
from mst.data.sources.index import ImageIndex
from mst.data.sources.opening import open_images
from mst.data.sources.places import Source
from mst.data.sources.protocol import ImageSource, even_positions
from mst.data.sources.search import index_images

__all__ = ["EXTENSIONS", "ImageIndex", "ImageSource", "Source", "even_positions", "index_images", "open_images"]
