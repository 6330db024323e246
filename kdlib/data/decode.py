"""From a PIL image as a file holds it to 8 bits a channel, upright and without transparency, or a refusal."""

from __future__ import annotations

from typing import Any

WHITE = (255, 255, 255, 255)


def upright(image: Any, name: str) -> Any:
    """The image in mode L or RGB: turned as its EXIF tag says, what is transparent on white, 16 bits scaled to 8.

    image: a PIL image; anything else comes back as it is. Raises ValueError for pixels of 32 bits or floats, which have
    no range that is known.
    """
    from PIL import Image, ImageOps

    if not isinstance(image, Image.Image):
        return image
    image = ImageOps.exif_transpose(image)  # first: what is made of 16 bits has no tags any more
    if image.mode.startswith("I;16"):
        image = _from_sixteen_bits(image)
    if image.mode in ("I", "F"):
        raise ValueError(
            f"{name} has pixels of mode {image.mode} (32 bits or floats), whose range is not known. Save it with 8 or "
            "16 bits a channel."
        )
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image)
    return image if image.mode == "L" else image.convert("RGB")


def _from_sixteen_bits(image: Any) -> Any:
    import numpy as np
    from PIL import Image

    pixels = np.asarray(image, dtype=np.uint16)  # PIL itself would clip at 255
    return Image.fromarray((pixels >> 8).astype(np.uint8))
