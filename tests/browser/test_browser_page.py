"""`make browser` in a real browser: what the page computes is what kdlib computes, also without a network."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lab import PATIENCE
from PIL import Image
from torch import Tensor, nn

from course.browser import networks, runtime, site
from course.browser.server import Server
from kdlib import data, measure, models, train
from kdlib.data import DataModule

pytest.importorskip("onnxruntime")  # of the extra `export`

pytestmark = pytest.mark.slow
TEACHER = "resnet20-fashion"
PICTURES = 40
# For each test picture the bytes that are shown as "what the networks see", and the logits that the page computes.
ALL_LOGITS = """async kind => {
  const { contents, logits } = await import('./main.js');
  const pixels = () => {
    const canvas = document.getElementById('seen');
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    return Uint8Array.from({ length: 784 }, (_, i) => data[4 * i]);
  };
  const found = [];
  for (const choice of document.getElementsByName('picture')) {
    choice.click();
    const bytes = pixels();
    const said = [];
    for (const network of contents.networks.slice(0, 2)) said.push(Array.from(await logits(network, kind, bytes)));
    found.push({ bytes: Array.from(bytes), logits: said });
  }
  return found;
}"""


# ---- a site with a small student, and its server


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, fashion: DataModule) -> Path:
    """A ResNet-8 that has learned for some seconds."""
    model = models.build("resnet8", num_classes=10, in_channels=1, seed=0)
    train.fit(model, fashion.subset(1000), epochs=3, seed=0, device="cpu", progress=False, test=False)
    path = tmp_path_factory.mktemp("student") / "small.safetensors"
    models.save(model, path)
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with onnxruntime-web, which npm fetches into the user's own cache once.

    The tests need nothing but the package index: without npm's they are skipped, unless KDLIB_NPM=1 says it is there.
    """
    try:
        version, files = runtime.runtime_files(runtime.cache_dir())
    except OSError as error:
        (pytest.fail if os.environ.get("KDLIB_NPM") == "1" else pytest.skip)(str(error))
    folder = tmp_path_factory.mktemp("home")
    kept = folder / ".cache" / "kdlib" / "browser" / f"onnxruntime-web-{version}"
    kept.mkdir(parents=True)
    for path in files.values():
        shutil.copy(path, kept)
    return folder


@pytest.fixture(scope="module")
def pages(home: Path, student: Path, fashion: DataModule) -> site.Site:
    cache = home / ".cache" / "kdlib" / "browser"
    names = [TEACHER, str(student), TEACHER]
    labels = networks.labels_of(names)
    made = [networks.export_network(name, one, fashion, cache) for name, one in zip(names, labels, strict=True)]
    return site.build_site(made[0], made[1:], fashion, *runtime.runtime_files(cache))


class Running:
    """A server of a site, in a thread."""

    def __init__(self, pages: site.Site) -> None:
        self.server = Server("127.0.0.1", 0)
        self.server.site = pages
        self.address = f"http://127.0.0.1:{self.server.port}/"
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


@pytest.fixture
def running(pages: site.Site) -> Iterator[Running]:
    one = Running(pages)
    yield one
    one.stop()


@pytest.fixture
def lab() -> None:
    """These tests need no JupyterLab."""


@pytest.fixture
def opened(page: Any, running: Running) -> Any:
    """The page, after both networks have answered."""
    page.goto(running.address)
    answered(page)
    return page


def answered(page: Any) -> str:
    """The sentence on both answers, once there is one."""
    page.locator("#verdict:not(:empty)").wait_for()
    return str(page.locator("#verdict").inner_text())


def kept(page: Any) -> None:
    page.locator("#storage", has_text="also works without a network").wait_for()


def settled(page: Any) -> str:
    """The bars' text once both networks have answered the last question."""
    page.locator("#verdict[aria-busy=false]").wait_for(state="attached")
    return str(page.locator("#bars tbody").inner_text())


def changes(page: Any, act: Callable[[], object]) -> str:
    """The bars' text after it has become another one, and no question is left."""
    before = settled(page)
    act()
    for _ in range(int(PATIENCE * 20)):
        if (now := settled(page)) != before:
            return now
        page.wait_for_timeout(50)
    raise AssertionError("The answers stay the same.")


@pytest.fixture(scope="module")
def shown(fashion: DataModule) -> tuple[Tensor, Tensor]:
    """The test pictures as bytes, and their labels."""
    pixels, labels = site.sample_pictures(fashion)
    return torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(PICTURES, 784), torch.tensor(labels)


@pytest.fixture(scope="module")
def both(student: Path) -> list[nn.Module]:
    return [models.load(TEACHER), models.load(student)]


def expected(model: nn.Module, pictures: Tensor) -> Tensor:
    images = (pictures.float() / 255 - 0.2860) / 0.3530
    with torch.inference_mode():
        return model(images.view(-1, 1, 28, 28))


# ---- what is computed


def test_the_page_computes_what_kdlib_computes(
    opened: Any, both: list[nn.Module], shown: tuple[Tensor, Tensor]
) -> None:
    found = opened.evaluate(ALL_LOGITS, "float")
    assert torch.equal(torch.tensor([one["bytes"] for one in found], dtype=torch.uint8), shown[0])
    for number, model in enumerate(both):
        logits = torch.tensor([one["logits"][number] for one in found])
        assert (logits - expected(model, shown[0])).abs().max() < 1e-3
    opened.get_by_role("radio", name="int8").check(force=True)
    whole = opened.evaluate(ALL_LOGITS, "int8")
    for number, model in enumerate(both):
        logits = torch.tensor([one["logits"][number] for one in whole])
        difference = (logits - expected(model, shown[0])).abs().max()
        assert 1e-3 < difference < 3  # it is another network, and hardly another one
        assert measure.agreement(logits, expected(model, shown[0])) > 0.9


def test_nothing_comes_from_anywhere_else(page: Any, running: Running) -> None:
    asked: list[str] = []
    page.context.on("request", lambda request: asked.append(request.url))  # the worker's and the service worker's too
    page.goto(running.address)
    answered(page)
    kept(page)
    assert {Path(url).suffix for url in asked} >= {".js", ".mjs", ".wasm", ".onnx", ".bin", ".json"}
    assert [url for url in asked if not url.startswith(running.address)] == []
    outside = "url => fetch(url).then(() => 'fetched', error => error.name)"
    assert page.evaluate(outside, "http://127.0.0.1:9/") == "TypeError"
    assert page.evaluate("() => document.fonts.size") == 0


def test_both_networks_answer(
    opened: Any, both: list[nn.Module], shown: tuple[Tensor, Tensor], fashion: DataModule
) -> None:
    opened.get_by_role("radio", name="Test picture 10, Ankle boot").check(force=True)
    opened.locator("#bars tr.label th", has_text="Ankle boot").wait_for()
    probabilities = [expected(model, shown[0][9:10]).softmax(1)[0] for model in both]
    for column, (role, one) in enumerate(zip(("teacher", "student"), probabilities, strict=True)):
        head = opened.locator(f"#{role}-head")
        head.locator(".says", has_text=fashion.classes[int(one.argmax())]).wait_for()
        cells = opened.locator(f"#bars tbody td:nth-child({1 + 2 * column}) .value").all_inner_texts()
        for text, share in zip(cells, one.tolist(), strict=True):
            number = float(text.removeprefix("> ").removesuffix(" %"))
            assert abs(number - 100 * share) < 0.11, (role, text, share)
    assert re.fullmatch(r"\d+\.\d+ ms", opened.locator("#facts tbody tr:nth-child(2) td:nth-child(2)").inner_text())
    sizes = opened.locator("#facts tbody tr:first-child td").all_inner_texts()
    assert re.fullmatch(r"1\.\d\d MB", sizes[0])
    assert re.fullmatch(r"0\.3\d MB", sizes[1])
    assert re.fullmatch(r"3\.\d × smaller", sizes[2])


def test_all_test_pictures_at_once(opened: Any, both: list[nn.Module], shown: tuple[Tensor, Tensor]) -> None:
    opened.get_by_role("button", name="Ask about all 40 test pictures").click()
    opened.locator("#exam-result:not(:empty)").wait_for()
    answers = [expected(model, shown[0]).argmax(1) for model in both]
    right = [int((one == shown[1]).sum()) for one in answers]
    same = int((answers[0] == answers[1]).sum())
    said = opened.locator("#exam-result").inner_text()
    assert said.startswith(f"{TEACHER} {right[0]} right, small {right[1]} (float); they agree on {same}.")


def test_another_student(opened: Any) -> None:
    choice = opened.get_by_role("combobox", name="Student")
    assert choice.locator("option").all_inner_texts() == ["small", TEACHER]
    changes(opened, lambda: choice.select_option(label=TEACHER))
    opened.locator("#student-head .name", has_text=TEACHER).wait_for()
    opened.locator("#facts tbody tr:first-child td:last-child", has_text="equal").wait_for()


# ---- pictures


def test_drawing_changes_the_answer_and_undo_brings_it_back(opened: Any) -> None:
    first = opened.locator("#bars tbody").inner_text()
    box = opened.locator("#pad").bounding_box()

    def draw() -> None:
        opened.mouse.move(box["x"] + 20, box["y"] + 20)
        opened.mouse.down()
        opened.mouse.move(box["x"] + box["width"] - 20, box["y"] + box["height"] - 20, steps=8)
        opened.mouse.up()

    changes(opened, draw)
    assert opened.locator("[name=picture]:checked").count() == 0
    assert opened.locator("#bars tr.label").count() == 0
    opened.get_by_role("button", name="Undo").click()
    opened.locator("[name=picture]:checked").wait_for(state="attached")
    opened.locator("#bars tr.label").wait_for()
    for _ in range(100):
        if opened.locator("#bars tbody").inner_text() == first:
            break
        opened.wait_for_timeout(50)
    assert opened.locator("#bars tbody").inner_text() == first


def test_a_drawing_is_made_to_fill_the_frame(opened: Any) -> None:
    opened.get_by_role("button", name="Clear").click()
    opened.get_by_label("Mirror").check()
    box = opened.locator("#pad").bounding_box()
    changes(opened, lambda: opened.mouse.click(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.5))
    image = seen(opened)
    assert image[:, 0].max() > 60  # two spots side by side, from edge to edge
    assert image[:, 27].max() > 60
    assert torch.allclose(image, image.flip(1), atol=2)
    opened.get_by_label("Fill the frame").uncheck()
    assert seen(opened)[:, :8].max() == 0


def seen(page: Any) -> Tensor:
    """What the networks see, 28 x 28."""
    pixels = """() => {
      const canvas = document.getElementById('seen');
      return Array.from(canvas.getContext('2d').getImageData(0, 0, 28, 28).data.filter((_, i) => i % 4 === 0));
    }"""
    return torch.tensor(page.evaluate(pixels), dtype=torch.float32).view(28, 28)


def photo(picture: Tensor, background: int = 238) -> bytes:
    """A photo of a piece of clothing: dark on light, small, off the centre, wider than high, with noise, in colour."""
    piece = Image.fromarray(picture.view(28, 28).numpy()).resize((280, 280), Image.Resampling.BICUBIC)
    light = 255 - torch.frombuffer(bytearray(piece.tobytes()), dtype=torch.uint8).view(280, 280).float() / 255 * 220
    whole = torch.full((420, 800), 255.0)
    whole[100:380, 60:340] = light
    whole *= background / 255
    whole += torch.randint(-3, 4, whole.shape, generator=torch.Generator().manual_seed(0))
    image = Image.fromarray(whole.clamp(0, 255).byte().numpy()).convert("RGB")
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92)
    return file.getvalue()


@pytest.mark.parametrize("number", [0, 1, 9])
def test_a_photo_on_a_light_background_is_made_like_the_test_pictures(
    number: int, opened: Any, shown: tuple[Tensor, Tensor], fashion: DataModule
) -> None:
    picture = shown[0][number]
    file = {"name": "coat.jpg", "mimeType": "image/jpeg", "buffer": photo(picture)}
    opened.get_by_role("radio", name="Test picture 25").check(force=True)
    changes(opened, lambda: opened.locator("#upload").set_input_files(file))
    assert opened.get_by_label("Invert").is_checked()
    assert opened.get_by_label("Fill the frame").is_checked()
    found = seen(opened)
    assert found[0, 0] == found[27, 27] == 0
    together = torch.stack([found.flatten(), picture.float()])
    assert torch.corrcoef(together)[0, 1] > 0.85  # JPEG, and the piece is cut out anew
    opened.locator("#teacher-head .says", has_text=fashion.classes[int(shown[1][number])]).wait_for()


def test_a_photo_on_a_dark_background_is_not_inverted(opened: Any, shown: tuple[Tensor, Tensor]) -> None:
    image = Image.fromarray(shown[0][1].view(28, 28).numpy()).resize((200, 200))
    file = io.BytesIO()
    image.save(file, "PNG")
    upload = {"name": "x.png", "mimeType": "image/png", "buffer": file.getvalue()}
    changes(opened, lambda: opened.locator("#upload").set_input_files(upload))
    assert not opened.get_by_label("Invert").is_checked()
    opened.locator("#teacher-head .says", has_text="Trouser").wait_for()


def test_a_file_that_is_no_picture(opened: Any) -> None:
    file = {"name": "letter.txt", "mimeType": "text/plain", "buffer": b"no picture"}
    opened.locator("#upload").set_input_files(file)
    opened.locator("#verdict.alert", has_text="letter.txt cannot be read as a picture. Take a JPEG").wait_for()
    changes(opened, lambda: opened.get_by_role("radio", name="Test picture 3,").check(force=True))
    opened.locator("#verdict:not(.alert)", has_text="Pullover").wait_for()


# ---- without a network, and after a change


def test_without_a_network_a_reload_still_answers(page: Any, pages: site.Site) -> None:
    host = Running(pages)
    try:
        page.goto(host.address)
        first = answered(page)
        kept(page)
    finally:
        host.stop()
    page.context.set_offline(True)
    page.reload()
    assert answered(page) == first
    changes(page, lambda: page.get_by_role("radio", name="int8").check(force=True))
    changes(page, lambda: page.get_by_role("combobox", name="Student").select_option(label=TEACHER))
    kept(page)


def test_what_was_kept_gives_way_to_what_the_host_has(page: Any, running: Running, pages: site.Site) -> None:
    page.goto(running.address)
    answered(page)
    kept(page)
    contents = pages["/contents.json"]
    assert isinstance(contents, bytes)
    title = (site.PAGE / "index.html").read_bytes().replace(b"<h1>", b"<h1>New: ")
    changed = {"/index.html": title, "/contents.json": contents.replace(b'"small"', b'"newer"')}
    running.server.site = {**pages, **changed}
    page.reload()
    answered(page)
    assert page.locator("#student-head .name").inner_text() == "newer"
    kept(page)
    page.context.set_offline(True)
    page.reload()
    answered(page)
    assert page.locator("h1").inner_text().startswith("New: ")


def test_a_browser_that_keeps_nothing(page: Any, running: Running) -> None:
    """Chrome refuses where the user blocks a site's data; the page works, and says what it cannot do."""
    page.add_init_script("caches.open = () => Promise.reject(new DOMException('blocked', 'SecurityError'))")
    page.goto(running.address)
    answered(page)
    page.locator("#storage", has_text="blocked site data").wait_for()


@pytest.mark.parametrize("missing", ["small-float", "contents.json", "pictures"])
def test_a_file_that_is_missing_is_told(page: Any, running: Running, missing: str) -> None:
    running.server.site = {url: one for url, one in running.server.site.items() if missing not in url}
    page.goto(running.address)
    page.locator("#verdict.alert", has_text="could not be loaded (404). Reload the page.").wait_for()


# ---- for everybody


def test_every_control_has_a_name(opened: Any) -> None:
    for role, names in {
        "slider": ["Brush", "Grey"],
        "checkbox": ["Mirror", "Fill the frame", "Invert"],
        "button": ["Clear", "Undo", "Ask about all 40 test pictures"],
        "combobox": ["Student"],
        "table": ["Probability of each class, in per cent", "What the two networks cost"],
        "img": ["What the networks see: a test picture, T-shirt/top"],
        "application": ["Drawing area"],
        "heading": ["The picture", "The answers"],
    }.items():
        for name in names:
            assert opened.get_by_role(role, name=name, exact=True).count() == 1, (role, name)
    assert opened.get_by_label("Upload a photo").count() == 1
    assert opened.get_by_role("radio", name="Test picture").count() == PICTURES
    assert opened.locator("html").get_attribute("lang") == "en"


def test_everything_can_be_done_with_the_keyboard(opened: Any) -> None:
    kept(opened)
    reached = []
    for _ in range(14):
        opened.keyboard.press("Tab")
        reached.append(opened.evaluate("() => document.activeElement.id || document.activeElement.name"))
    order = ["", "pad", "brush", "shade", "mirror", "fit", "invert", "clear", "undo", "upload", "picture", "student"]
    assert reached == [*order, "precision", "exam"]
    changes(opened, lambda: press(opened, "[name=picture]:checked", "ArrowRight"))
    assert opened.locator("[name=picture]:checked").input_value() == "1"
    changes(opened, lambda: press(opened, "[name=precision]:checked", "ArrowRight"))
    assert opened.locator("[name=precision]:checked").input_value() == "int8"
    changes(opened, lambda: press(opened, "#pad", "Space", *6 * ["ArrowDown"], *3 * ["ArrowLeft"], "Space"))
    assert opened.locator("#ring").is_visible()
    still = seen(opened)
    press(opened, "#pad", "ArrowUp", "ArrowUp")  # the brush is lifted
    assert torch.equal(seen(opened), still)
    changes(opened, lambda: press(opened, "#undo", "Enter"))


def test_the_brush_is_spoken(opened: Any) -> None:
    said = opened.locator(".sheet [role=status]")
    press(opened, "#pad", "Space")
    assert said.inner_text() == "Brush down: 14 of 28 from the left, 14 from the top"
    press(opened, "#pad", "ArrowRight")
    assert said.inner_text() == "15 of 28 from the left, 14 from the top"
    press(opened, "#pad", "Enter")
    assert said.inner_text() == "Brush up: 15 of 28 from the left, 14 from the top"
    opened.keyboard.press("Tab")  # the brush is lifted, and no ring shows it
    assert said.inner_text() == ""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_brush_stands_out_on_every_grey(scheme: str, opened: Any) -> None:
    """By at least the 3 of WCAG's level AA, along its whole edge; up and down are told apart as well."""
    opened.emulate_media(color_scheme=scheme)
    round_it = 2 * 3.14 * 17  # pixels: the circumference of the brush
    for grey in (0, 60, 118, 200, 255):
        pictures = []
        for key in ("Space", "Space"):
            press(opened, "#pad", key)
            fill = "grey => { const it = pad.getContext('2d'); it.fillStyle = `rgb(${grey} ${grey} ${grey})`;"
            opened.evaluate(f"{fill} it.fillRect(0, 0, 280, 280); }}", grey)
            pictures.append(luminance(opened.locator(".sheet").screenshot()))
        opened.evaluate("() => { ring.style.visibility = 'hidden'; }")
        pictures.append(luminance(opened.locator(".sheet").screenshot()))
        opened.evaluate("() => { ring.style.visibility = ''; }")
        down, up, bare = pictures
        assert standing_out(down, bare) > 2 * round_it, grey
        assert standing_out(up, bare) > round_it, grey  # in dashes
        assert standing_out(down, up) > 0.5 * round_it, grey


def luminance(screenshot: bytes) -> Tensor:
    """WCAG's relative luminance of each pixel."""
    image = Image.open(io.BytesIO(screenshot)).convert("RGB")
    colours = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3) / 255
    linear = torch.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    return linear @ torch.tensor([0.2126, 0.7152, 0.0722])


def standing_out(first: Tensor, second: Tensor) -> int:
    """The number of pixels with a contrast of at least 3 between two pictures."""
    return int(((torch.maximum(first, second) + 0.05) / (torch.minimum(first, second) + 0.05) >= 3).sum())


def test_the_keys_are_told_on_a_tablet_with_a_keyboard(opened: Any) -> None:
    from playwright.sync_api import expect

    touch = {"enabled": True, "maxTouchPoints": 5}
    opened.context.new_cdp_session(opened).send("Emulation.setTouchEmulationEnabled", touch)
    assert opened.evaluate("() => matchMedia('(pointer: coarse)').matches")
    expect(opened.locator("#pad")).to_have_accessible_description(re.compile("arrows move the brush"))
    keys = opened.locator(".keys")
    assert keys.bounding_box()["height"] <= 1  # a finger does not need them
    press(opened, "#pad", "ArrowUp")
    assert keys.bounding_box()["height"] > 10


def press(page: Any, where: str, *keys: str) -> None:
    page.locator(where).focus()
    for key in keys:
        page.keyboard.press(key)


@pytest.mark.parametrize("width", [320, 390, 768, 1200])
def test_no_width_makes_the_page_scroll_sideways(width: int, opened: Any) -> None:
    opened.set_viewport_size({"width": width, "height": 800})
    assert opened.evaluate("() => document.documentElement.scrollWidth") <= width
    assert opened.locator("#verdict").is_visible()


CONTRAST = """() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = text => {
    const [r, g, b] = parse(text).map(v => v / 255).map(v => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = node => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if (parse(colour)[3] !== 0) return colour;
    }
  };
  const worst = [];
  for (const node of document.querySelectorAll('body *')) {
    const own = [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim());
    if (!own || node.closest('.unseen, noscript, select') || !node.checkVisibility()) continue;
    const [a, b] = [light(getComputedStyle(node).color), light(behind(node))].sort((x, y) => y - x);
    worst.push([(a + 0.05) / (b + 0.05), node.textContent.trim().slice(0, 40)]);
  }
  return worst.sort((x, y) => x[0] - y[0])[0];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_in_dark(scheme: str, opened: Any) -> None:
    """By at least the 4.5 of WCAG's level AA."""
    opened.emulate_media(color_scheme=scheme)
    background = opened.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) < 3 * 60) == (scheme == "dark")
    contrast, text = opened.evaluate(CONTRAST)
    assert contrast >= 4.5, text


# ---- the command


def test_the_command_serves_the_page(page: Any, home: Path, student: Path, pages: site.Site) -> None:
    """As make browser calls it, by a user whose networks were made before."""
    command = [sys.executable, "-m", "course.browser", "--port", "0", "--teacher", TEACHER, "--student", str(student)]
    environment = {"HOME": str(home), "KDLIB_DATA": str(data.data_dir()), "OMP_NUM_THREADS": "1"}
    root = site.PAGE.parents[2]
    process = subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = re.fullmatch(r"Teacher and student \(Ctrl-C stops the server\): (http://127\.0\.0\.1:\d+/)\n", line)
        assert address, line + process.stdout.read()
        page.goto(address[1])
        assert "label" in answered(page)
        assert page.locator("#student-head .name").inner_text() == "small"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stdout.read().strip() == ""
    finally:
        process.kill()
        process.wait()


def test_one_exam_at_a_time(opened: Any) -> None:
    button = opened.locator("#exam")
    label = button.inner_text()
    button.click()
    changes(opened, lambda: opened.get_by_role("radio", name=re.compile("^Test picture 10")).check(force=True))
    assert button.get_attribute("aria-disabled") == "true" or button.inner_text() == label


def test_the_exam_keeps_the_focus(opened: Any) -> None:
    begun = """() => new MutationObserver(() => {
      if (document.getElementById('exam').textContent.startsWith('1 of')) window.exams = (window.exams ?? 0) + 1;
    }).observe(document.getElementById('exam'), { childList: true })"""
    opened.evaluate(begun)
    button = opened.locator("#exam")
    label = button.inner_text()
    press(opened, "#exam", "Enter", "Enter")  # the second one while the first is under way
    assert opened.get_by_role("button", name=label, exact=True).count() == 1  # a name that changes would be spoken
    opened.locator("#exam-result:not(:empty)").wait_for()
    opened.locator("#exam[aria-disabled=false]").wait_for()
    assert button.inner_text() == label
    assert opened.evaluate("() => document.activeElement.id") == "exam"
    assert opened.evaluate("() => window.exams") == 1


# Collects what screen readers speak by themselves: every change of a live region.
LISTEN = """
  window.heard = [];
  new MutationObserver(changes => {
    for (const { target } of changes) {
      const region = target.parentElement && target.closest?.('[role=status], [role=alert], [aria-live]');
      if (region && region.textContent.trim()) window.heard.push(region.textContent);
    }
  }).observe(document, { subtree: true, childList: true });
"""


def test_only_the_end_of_the_keeping_is_spoken(page: Any, running: Running) -> None:
    page.add_init_script(LISTEN)
    page.goto(running.address)
    kept(page)
    heard = page.evaluate("() => window.heard.filter(text => text.includes('without a network'))")
    assert heard == [page.locator("#storage").inner_text()]


def test_undo_at_the_start_comes_back_to_a_described_picture(opened: Any) -> None:
    opened.get_by_role("button", name="Undo").click()
    settled(opened)
    assert "your drawing" in opened.locator("#seen").get_attribute("aria-label")
    assert opened.locator("#fit").is_checked()
