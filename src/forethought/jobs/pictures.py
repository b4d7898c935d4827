"""One picture from a file, as RGB. What cannot be read as a picture is said by a `ValueError` of its own."""

import struct
import warnings
from typing import Any

import numpy as np

from forethought.errors import MissingExtraError

try:
    from PIL import Image, ImageOps
except ModuleNotFoundError as err:
    raise MissingExtraError(
        f"Cannot read pictures: expected the package pillow, got {err}. pip install 'forethought[vision]'"
    ) from err

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp", ".jfif"}
)
HOW = "pictures as RGB, turned as their EXIF says; transparency is dropped, 16 bits are scaled to 8"


class UnreadableError(ValueError):
    """The content of a file is no picture or sound that can be read. The file itself could be opened."""


def read_picture(path: str) -> Image.Image:
    """Read a picture as 8-bit RGB.

    Raises:
        UnreadableError: the content is none, or is cut off.
        OSError: the file cannot be opened.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata; what cannot be decoded is an error
        try:
            with Image.open(path) as image:
                return _as_rgb(image)
        except OSError as err:
            if err.errno is not None:
                raise  # of the file system, not of the content
            raise UnreadableError(_said(err)) from err
        except (ValueError, SyntaxError, EOFError, struct.error, KeyError, IndexError) as err:
            raise UnreadableError(_said(err)) from err
        except Image.DecompressionBombError as err:
            raise UnreadableError(_said(err)) from err


def _as_rgb(image: Image.Image) -> Image.Image:
    turned: Any = ImageOps.exif_transpose(image)
    if turned.mode.startswith("I;16") or (turned.mode == "I" and image.format in ("PNG", "PPM")):
        # PIL's own conversion cuts everything above 255 off instead.
        turned = Image.fromarray((np.asarray(turned).astype(np.int64) * 255 // 65535).astype(np.uint8))
    elif turned.mode in ("I", "F"):
        raise UnreadableError(f"pixels of mode {turned.mode!r}, whose range nothing tells")
    elif "transparency" in turned.info:
        turned = turned.convert("RGBA")
    rgb: Image.Image = turned.convert("RGB")
    return rgb


def _said(err: BaseException) -> str:
    words = " ".join(str(err).split())
    return "no picture that PIL knows" if "cannot identify image file" in words else words or type(err).__name__
