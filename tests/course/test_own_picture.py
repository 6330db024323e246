"""Photos in the form of Fashion-MNIST: what the teacher answers, orientation, what is no picture."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image
from PIL.PngImagePlugin import PngInfo

from course import own_picture
from kdlib import data, models


def photo(path: Path, clothing: np.ndarray, *, background: int = 250) -> Path:
    """A picture of clothing, dark on a light page, ten times as large and not in the middle."""
    page = Image.new("L", (600, 500), background)
    page.paste(Image.fromarray(clothing).resize((280, 280)), (100, 50))
    page.convert("RGB").save(path)
    return path


@pytest.mark.slow
def test_a_teacher_answers_a_photo_of_a_picture_as_it_answers_the_picture(tmp_path: Path) -> None:
    fashion, teacher = data.load("fashion-mnist"), models.load("resnet20-fashion").eval()
    pictures = fashion.test.images[:100]
    read = [own_picture.read(photo(tmp_path / "photo.png", 255 - one[0].numpy(), background=255)) for one in pictures]
    mean, std = fashion.test.mean[0], fashion.test.std[0]
    with torch.no_grad():
        answers = [teacher((batch / 255 - mean) / std).argmax(1) for batch in (torch.stack(read), pictures)]
    same = answers[0] == answers[1]
    assert same.float().mean() > 0.85


@pytest.mark.parametrize("background", [250, 5], ids=["light", "dark"])
def test_what_stands_out_is_bright_and_fills_the_square(tmp_path: Path, background: int) -> None:
    tall = np.full((280, 280), background, np.uint8)
    tall[20:260, 100:160] = 128
    image = own_picture.read(photo(tmp_path / "photo.png", tall, background=background))
    assert image.shape == (1, 28, 28)
    assert image.dtype == torch.uint8
    rows, columns = (torch.nonzero((image[0] > 60).any(dim=axis)).flatten() for axis in (1, 0))
    assert (rows[0], rows[-1]) == (0, 27)
    assert columns[0] in (10, 11)
    assert columns[-1] in (16, 17)
    assert not image[0, :, :9].any()


def test_the_noise_of_a_camera_does_not_widen_what_is_cut_out(tmp_path: Path) -> None:
    page = np.random.default_rng(0).normal(200, 3, (1600, 1200))
    page[600:1100, 400:700] -= 60
    Image.fromarray(page.clip(0, 255).astype(np.uint8)).save(tmp_path / "noisy.png")
    seen = own_picture.read(tmp_path / "noisy.png")[0] > 40
    assert seen.any(dim=1).all()
    assert 15 <= seen.any(dim=0).sum() <= 18


def test_a_camera_that_was_turned_and_what_is_transparent(tmp_path: Path) -> None:
    wide = Image.new("RGBA", (300, 200), (0, 0, 0, 0))
    wide.paste((20, 20, 20, 255), (50, 80, 250, 120))
    wide.save(tmp_path / "transparent.png")
    flat = own_picture.read(tmp_path / "transparent.png")[0] > 60
    assert flat.any(dim=0).all()
    assert not flat.any(dim=1).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees to see it upright
    page = Image.new("RGB", wide.size, "white")
    page.paste(wide, mask=wide)
    page.save(tmp_path / "turned.jpg", exif=exif)
    upright = own_picture.read(tmp_path / "turned.jpg")[0] > 60
    assert upright.any(dim=1).all()
    assert not upright.any(dim=0).all()


def test_what_is_no_picture_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="no file .*shirt.jpg"):
        own_picture.read(tmp_path / "shirt.jpg")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="not a picture that can be read"):
        own_picture.read(tmp_path / "text.png")
    photo(tmp_path / "whole.png", np.zeros((280, 280), np.uint8))
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:300])
    with pytest.raises(ValueError, match="not a picture that can be read"):
        own_picture.read(tmp_path / "cut.png")
    Image.new("L", (50, 50), 99).save(tmp_path / "empty.png")
    with pytest.raises(ValueError, match="same grey everywhere"):
        own_picture.read(tmp_path / "empty.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)  # what PIL takes for an attack is far larger
    with pytest.raises(ValueError, match="not a picture that can be read"):
        own_picture.read(tmp_path / "empty.png")


def test_sixteen_bits_of_grey(tmp_path: Path) -> None:
    page = np.full((200, 200), 60_000, np.uint16)
    page[50:150, 80:120] = 10_000
    Image.fromarray(page).save(tmp_path / "deep.png")
    assert (own_picture.read(tmp_path / "deep.png")[0] > 60).any()


def test_a_picture_that_pil_refuses_by_another_error_is_named(tmp_path: Path) -> None:
    notes = PngInfo()
    notes.add_text("note", "a" * 2_000_000, zip=True)
    Image.new("L", (50, 50), 99).save(tmp_path / "note.png", pnginfo=notes)
    (tmp_path / "header.ppm").write_bytes(b"P6 24 twenty-four 255 " + bytes(24 * 24 * 3))
    for name in ("note.png", "header.ppm"):
        with pytest.raises(ValueError, match=f"{name} is not a picture that can be read"):
            own_picture.read(tmp_path / name)


def test_no_other_program_is_called_for_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL hands PostScript to Ghostscript, whatever the file's ending."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("Ghostscript is called"))
    (tmp_path / "shirt.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 24\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(ValueError, match=r"shirt\.jpg is not a picture that can be read.*expected a PNG or JPEG file"):
        own_picture.read(tmp_path / "shirt.jpg")
