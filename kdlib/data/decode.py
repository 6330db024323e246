"""From a PIL image as a file holds it to 8 bits a channel, upright and without transparency, or a refusal."""

from __future__ import annotations

import struct
import warnings
from typing import Any

WHITE = (255, 255, 255, 255)
# Those of the endings that torchvision's ImageFolder reads. PIL knows others, and hands PostScript to Ghostscript.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")
# What PIL raises for a damaged file besides OSError, SyntaxError and EOFError.
DAMAGED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, struct.error)


def unreadable(name: str, error: Exception) -> OSError:
    """The error for an image that PIL does not read."""
    from PIL.Image import DecompressionBombError

    if isinstance(error, DecompressionBombError):
        return OSError(
            f"{name} is too large to be decoded safely ({error}). Remove it from the data, or scale it down."
        )
    return OSError(f"{name} cannot be read as an image ({error}). Copy it again or remove it.")


def upright(image: Any, name: str) -> Any:
    """The image in mode L or RGB: turned as its EXIF tag says, what is transparent on white, 16 bits scaled to 8.

    image: a PIL image; anything else comes back as it is. Warns of EXIF data that cannot be read: such an image is not
    turned. Raises OSError for an image that was opened and cannot be read, and ValueError for pixels of 32 bits or
    floats, which have no range that is known.
    """
    from PIL import Image

    if not isinstance(image, Image.Image):
        return image
    try:
        image.load()  # PIL opens a file, and reads it when the pixels are asked for; only then does it turn a TIFF
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError, *DAMAGED) as error:
        raise unreadable(name, error) from error
    image = _turned(image, name)  # first: what is made of 16 bits has no tags any more
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # PIL scales these to 16 bits
        image = _from_sixteen_bits(image)
    if image.mode in ("I", "F"):
        raise ValueError(
            f"{name} has pixels of mode {image.mode} (32 bits or floats), whose range is not known. Save it with 8 or "
            "16 bits a channel."
        )
    if image.mode == "La":  # PIL converts it to LA alone
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image)
    return image if image.mode == "L" else image.convert("RGB")


def _turned(image: Any, name: str) -> Any:
    """As `ImageOps.exif_transpose`, which also writes the tags anew and fails where one of them cannot be written."""
    from PIL import ExifTags, Image

    if image.format == "TIFF":  # PIL has turned it when it was loaded; before version 10.1 it left the tag there
        return image
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    try:
        turn = turns.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (OSError, SyntaxError, EOFError, *DAMAGED) as error:
        warnings.warn(f"The EXIF data of {name} cannot be read ({error}): it is not turned.", stacklevel=3)
        return _without_tags(image.copy())
    return image if turn is None else _without_tags(image.transpose(turn))


def _without_tags(image: Any) -> Any:
    """So that an image which comes here twice is turned once."""
    image.info = {name: value for name, value in image.info.items() if name == "transparency"}
    return image


def _from_sixteen_bits(image: Any) -> Any:
    import numpy as np
    from PIL import Image

    pixels = np.asarray(image, dtype=np.uint16)  # PIL itself would clip at 255
    grey = (pixels >> 8).astype(np.uint8)
    see_through = image.info.get("transparency")
    if isinstance(see_through, int):  # here: two values of 16 bits may be one of 8
        grey[pixels == see_through] = WHITE[0]
    return Image.fromarray(grey)
