"""A photo of your own in the form of Fashion-MNIST's images: one piece of clothing, bright on black, 28 x 28."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from kdlib.data.decode import DAMAGED

SIDE = 28
FAINT = 0.15  # of the brightest pixel: what is darker counts as background, such as a shadow or the noise of a camera


def read(path: str | Path) -> Tensor:
    """The piece of clothing on a photo with a plain background, much as the makers of Fashion-MNIST prepared theirs.

    The distance of each grey from the background's, brighter or darker, cut out, its longer side 28 pixels, in the
    middle of a black square (Xiao and others, 2017, arXiv:1708.07747, section 2, who also sharpen). Returns uint8,
    1 x 28 x 28. Raises FileNotFoundError if there is no such file, and ValueError if it is no picture, or one with
    nothing on it.
    """
    grey = _grey(Path(path))
    edge = torch.cat([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    shape = (grey - edge.median()).abs()
    seen = shape > FAINT * shape.max()
    if shape.max() < 8:  # of 255 levels
        raise ValueError(f"{path} has the same grey everywhere; expected one piece of clothing on a plain background.")
    rows, columns = (torch.nonzero(seen.any(dim=axis)).flatten() for axis in (1, 0))
    cut = (shape * seen)[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return _in_square(cut)


def _grey(path: Path) -> Tensor:
    from PIL import Image, ImageOps

    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Put the photo beside this notebook, or give its whole path.")
    try:
        Image.init()  # PIL hands PostScript, whatever the file is called, to Ghostscript
        with Image.open(path, formats=[name for name in Image.ID if name != "EPS"]) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bits of grey, of which PIL would keep the lowest 8 levels only
                upright = Image.fromarray((np.asarray(upright) // 256).clip(0, 255).astype(np.uint8))
            upright = upright.convert("RGBA")
        upright.thumbnail((20 * SIDE, 20 * SIDE))  # averages the noise, a pixel of which would widen what is cut out
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError, *DAMAGED) as error:
        raise ValueError(f"{path} is not a picture that can be read ({error}); expected a PNG or JPEG file.") from error
    page = Image.new("RGBA", upright.size, "white")  # what is transparent is seen on white
    return F.pil_to_tensor(Image.alpha_composite(page, upright).convert("L"))[0].float()


def _in_square(cut: Tensor) -> Tensor:
    height, width = (max(1, round(SIDE * side / max(cut.shape))) for side in cut.shape)
    small = F.resize(cut[None], [height, width], antialias=True)
    left, top = (SIDE - width) // 2, (SIDE - height) // 2
    square = F.pad(small, [left, top, SIDE - width - left, SIDE - height - top])
    return square.clamp(0, 255).round().to(torch.uint8)
