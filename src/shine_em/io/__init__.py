"""Movies from files and to files, with their calibration.

``read(path)`` gives a lazy `Movie`; ``write(movie, path)`` and ``open_writer`` stream frames out.
"""

from .description import describe
from .reading import READABLE, open_movie, read
from .selection import parse_crop, parse_frames
from .writing import WRITABLE, MovieWriter, open_writer, write

__all__ = [
    "READABLE",
    "WRITABLE",
    "MovieWriter",
    "describe",
    "open_movie",
    "open_writer",
    "parse_crop",
    "parse_frames",
    "read",
    "write",
]
