"""Seeded faults: known mistakes of distillation code, put into a copy of the library one at a time.

    python tests/mutants.py              # all of them, three to five minutes on two cores
    python tests/mutants.py variance rkd # those whose name contains one of these words

Each fault replaces a text in one file; the tests named beside it must fail. Exit code 1 unless every fault is killed.
"""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 300  # seconds for the tests of one fault


@dataclass(frozen=True)
class Mutant:
    """A fault: in this file of kdlib, `old` (which occurs once) becomes `new`; these tests must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: Sequence[str]


LOGITS, EVERY = "tests/losses/test_logits.py", "tests/losses/test_every_loss.py"
FEATURES, RELATIONS = "tests/losses/test_features.py", "tests/losses/test_relations.py"
METHODS, TEACHERS, TRAIN = "tests/test_methods.py", "tests/test_teachers.py", "tests/test_train.py"
PARSER, TABLE, MODELS = "tests/test_method_parser.py", "tests/test_loss_table.py", "tests/test_models.py"
DISTILLER, FIT_ANY, TASKS = "tests/test_distiller.py", "tests/test_fit_any.py", "tests/test_tasks.py"
ENSEMBLE, ANSWERS, PROJECTORS = "tests/test_ensemble.py", "tests/test_answers.py", "tests/test_projectors.py"
KD = "return _kl(log_student, log_teacher) * temperature**2"
MASKED_ROOT = "squared.masked_fill(coincide, 1.0).sqrt().masked_fill(coincide, 0.0)"
RNG = "devices.set_rng_states(rng_states, device)"


def train(*names: str) -> tuple[str, ...]:
    """Tests of test_train.py by name."""
    return tuple(f"{TRAIN}::test_{name}" for name in names)


RESUMED = train("rule_5_stopped_anywhere_and_resumed_is_never_stopped")
PLAIN_LOOP = train("a_run_is_what_a_plain_loop_gives")
CLIPPED = train("the_methods_parameters_are_trained_and_clipped_with_the_students")

MUTANTS = (
    # -------------------- losses on logits
    Mutant("kd: T^2 left out", "losses/logits.py", KD, "return _kl(log_student, log_teacher)", (LOGITS,)),
    Mutant("kd: T for T^2", "losses/logits.py", KD, "return _kl(log_student, log_teacher) * temperature", (LOGITS,)),
    Mutant(
        "kd: student and teacher swapped in KL",
        "losses/logits.py",
        KD,
        "return _kl(log_teacher, log_student) * temperature**2",
        (LOGITS,),
    ),
    Mutant(
        "kd: mean for batchmean",
        "losses/logits.py",
        'reduction="batchmean", log_t',
        'reduction="mean", log_t',
        (LOGITS,),
    ),
    Mutant(
        "kd: sum for batchmean", "losses/logits.py", 'reduction="batchmean", log_t', 'reduction="sum", log_t', (LOGITS,)
    ),
    Mutant(
        "kd: softmax twice",
        "losses/logits.py",
        "log_teacher = F.log_softmax(teacher / temperature, dim=1)",
        "log_teacher = F.log_softmax(F.softmax(teacher / temperature, dim=1), dim=1)",
        (LOGITS,),
    ),
    Mutant(
        "kd: temperature on one side only",
        "losses/logits.py",
        "log_teacher = F.log_softmax(teacher / temperature, dim=1)",
        "log_teacher = F.log_softmax(teacher, dim=1)",
        (LOGITS,),
    ),
    Mutant(
        "kd: log of a softmax",
        "losses/logits.py",
        "log_student = F.log_softmax(student / temperature, dim=1)",
        "log_student = F.softmax(student / temperature, dim=1).log()",
        (EVERY,),
    ),
    Mutant(
        "dkd: T^2 left out",
        "losses/logits.py",
        "return (alpha * tckd + beta * nckd) * temperature**2",
        "return alpha * tckd + beta * nckd",
        (LOGITS,),
    ),
    Mutant(
        "dkd: target not left out of the others",
        "losses/logits.py",
        "others = F.log_softmax(scaled_logits.scatter(1, target, -math.inf), dim=1)",
        "others = F.log_softmax(scaled_logits, dim=1)",
        (LOGITS,),
    ),
    Mutant(
        "dist: T^2 left out",
        "losses/logits.py",
        "return (inter * between_rows + intra * between_columns) * temperature**2",
        "return inter * between_rows + intra * between_columns",
        (LOGITS,),
    ),
    Mutant(
        "standardized_kd: variance over C - 1",
        "losses/logits.py",
        "scale = math.sqrt(classes)",
        "scale = math.sqrt(classes - 1)",
        (LOGITS,),
    ),
    Mutant(
        "all losses: an epsilon in the denominator",
        "losses/_common.py",
        "return x / size.masked_fill(size <= noise, math.inf)",
        "return x / (size + 1e-8)",
        (EVERY,),
    ),
    Mutant(
        "all losses: computed in half precision",
        "losses/_common.py",
        "(x.dtype for x in tensors.values()), torch.float32)",
        "(x.dtype for x in tensors.values()))",
        (EVERY,),
    ),
    # -------------------- losses on features
    Mutant(
        "hint: sum for mean",
        "losses/features.py",
        "return F.mse_loss(student, teacher)",
        'return F.mse_loss(student, teacher, reduction="sum")',
        (FEATURES,),
    ),
    Mutant(
        "attention: maps not normalized",
        "losses/features.py",
        "return unit(rescaled(f.square().mean(dim=1).flatten(1), dim=1))",
        "return f.square().mean(dim=1).flatten(1)",
        (FEATURES,),
    ),
    Mutant(
        "vid: log(1 + exp) for softplus",
        "losses/features.py",
        "variance = F.softplus(raw) + VARIANCE_FLOOR",
        "variance = (1 + raw.exp()).log() + VARIANCE_FLOOR",
        (FEATURES,),
    ),
    Mutant(
        "vid: no floor under the variance",
        "losses/features.py",
        "variance = F.softplus(raw) + VARIANCE_FLOOR",
        "variance = F.softplus(raw)",
        (FEATURES,),
    ),
    Mutant(
        "vid: variance not a parameter",
        "projectors.py",
        "self.raw_variance = nn.Parameter(torch.full((outputs,), math.log(math.expm1(5.0))))",
        "self.raw_variance = torch.full((outputs,), math.log(math.expm1(5.0)))",
        (METHODS,),
    ),
    # -------------------- losses on relations
    Mutant(
        "fsp: not divided by the positions",
        "losses/relations.py",
        "_pooled(a, height, width) / (height * width)",
        "_pooled(a, height, width)",
        (RELATIONS,),
    ),
    Mutant("cka: not centred", "losses/relations.py", "centred = rows - mean\n", "centred = rows\n", (RELATIONS,)),
    Mutant(
        "rkd: distances by the Gram matrix in float32",
        "losses/relations.py",
        "wide = off_mps(rows).double()  # MPS has no float64\n    centred = wide - wide.mean(dim=0)",
        "centred = rows",
        (RELATIONS,),
    ),
    Mutant(
        "rkd: squared distances clamped at an epsilon",
        "losses/relations.py",
        MASKED_ROOT,
        "squared.clamp(min=1e-12).sqrt()",
        (EVERY, RELATIONS),
    ),
    Mutant(
        "rkd: mean distance over the diagonal, too",
        "losses/relations.py",
        "mean = distances.sum() / (len(rows) * (len(rows) - 1))",
        "mean = distances.mean()",
        (RELATIONS,),
    ),
    Mutant(
        "rkd: angles by differences that lose their digits",
        "losses/relations.py",
        'compute_mode="donot_use_mm_for_euclid_dist"',
        'compute_mode="use_mm_for_euclid_dist"',
        (RELATIONS,),
    ),
    Mutant(
        "rkd: the paper's 1 : 2 lost", "loss_table.py", "(2.0, losses.rkd_angle)", "(1.0, losses.rkd_angle)", (METHODS,)
    ),
    Mutant(
        "similarity: L1 for L2 normalization",
        "losses/relations.py",
        "unit(rescaled(inner(one, one), dim=1)) for one",
        "F.normalize(inner(one, one), p=1, dim=1) for one",
        (RELATIONS,),
    ),
    # -------------------- methods
    Mutant(
        "Logit: alpha's roles swapped",
        "methods.py",
        'return {"hard": self.alpha * hard, "soft": (1 - self.alpha) * soft}',
        'return {"hard": (1 - self.alpha) * hard, "soft": self.alpha * soft}',
        (METHODS,),
    ),
    Mutant(
        "Logit: temperature does not reach the loss",
        "methods.py",
        "self._soft = partial(self._soft, temperature=temperature)",
        "pass",
        (METHODS,),
    ),
    Mutant(
        "Logit: teacher's logits on both sides",
        "methods.py",
        "logits = student.logits, _required(teacher, self).logits",
        "logits = _required(teacher, self).logits, _required(teacher, self).logits",
        (METHODS,),
    ),
    Mutant(
        "Logit: student and teacher swapped",
        "methods.py",
        "logits = student.logits, _required(teacher, self).logits",
        "logits = _required(teacher, self).logits, student.logits",
        (METHODS,),
    ),
    Mutant("sum: weights ignored", "methods.py", "terms[name] = weight * term", "terms[name] = term", (METHODS,)),
    Mutant(
        "Feature: projectors made anew, and learning lost, by a second fit",
        "methods.py",
        "if len(self.projectors) and projector.learns:",
        "if False:",
        (METHODS,),
    ),
    Mutant(
        "parser: the table's weight ignored",
        "method_parser.py",
        "weight = LOSSES[name].weight if name in LOSSES else 1.0",
        "weight = 1.0",
        (PARSER,),
    ),
    Mutant(
        "parser: no labels beside a feature loss",
        "method_parser.py",
        "return total if total.trains_logits else methods.HardLabels() + total",
        "return total",
        (PARSER,),
    ),
    Mutant(
        "layers paired from the start",
        "models.py",
        "list(zip(reversed(stage_layers(student)), reversed(stage_layers(teacher)), strict=False))[::-1]",
        "list(zip(stage_layers(student), stage_layers(teacher), strict=False))",
        (MODELS,),
    ),
    # -------------------- teachers
    Mutant("teacher in train mode", "teachers/frozen.py", "self.model.eval()  # at every call", "pass  #", (TEACHERS,)),
    Mutant("gradient into the teacher", "teachers/base.py", "with torch.no_grad():", "if True:", (TEACHERS,)),
    Mutant(
        "cache: another view", "teachers/cached.py", "_take(values[view], rows", "_take(values[0], rows", (TEACHERS,)
    ),
    Mutant(
        "cache: other images of the same indices",
        "teachers/cached.py",
        'known = batch.fingerprint == self.metadata["view_fingerprint"] and',
        "known =",
        (TEACHERS,),
    ),
    Mutant(
        "cache: outputs by position in the batch",
        "teachers/cached.py",
        "rows, view = self._find_rows(batch.indices), batch.view",
        "rows, view = torch.arange(len(batch.indices)), batch.view",
        (TEACHERS,),
    ),
    Mutant(
        "cache: another augmentation or seed accepted",
        "teachers/cached.py",
        'if view_fingerprint(dataset, augmentation, seed) != self.metadata["view_fingerprint"]:',
        "if False:",
        (TEACHERS,),
    ),
    Mutant(
        "cache: a folder of another teacher opened",
        "teachers/cached.py",
        'differ = [name for name in metadata if name != "view_fingerprint" and',
        'differ = [name for name in metadata if name not in ("view_fingerprint", "teacher") and',
        (TEACHERS,),
    ),
    Mutant(
        "augmentation: the same in every view",
        "data/augment.py",
        'bits = random_bits(indices, "augment", seed, view)',
        'bits = random_bits(indices, "augment", seed, 0)',
        ("tests/test_augment.py",),
    ),
    Mutant(
        "augmentation: by position in the batch",
        "data/augment.py",
        'bits = random_bits(indices, "augment", seed, view)',
        'bits = random_bits(torch.arange(batch), "augment", seed, view)',
        ("tests/test_augment.py",),
    ),
    # -------------------- the trainer
    Mutant(
        "projectors left out of the optimizer and of clipping",
        "trainer.py",
        "self.parameters = list(dict.fromkeys([*self.student.parameters(), *self.method.parameters()]))",
        "self.parameters = list(self.student.parameters())",
        CLIPPED,
    ),
    Mutant(
        "projectors left out of clipping",
        "trainer.py",
        "nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)",
        "nn.utils.clip_grad_norm_(self.student.parameters(), self.recipe.clip)",
        CLIPPED,
    ),
    Mutant(
        "projectors left out of the optimizer",
        "trainer.py",
        "self.optimizer = self.recipe.make_optimizer(self.parameters)",
        "self.optimizer = self.recipe.make_optimizer(self.student.parameters())",
        CLIPPED,
    ),
    Mutant(
        "test set used for choices",
        "batches.py",
        "validation = self.data.validation",
        "validation = self.data.test",
        train("rule_4_the_test_set_is_read_once_after_all_else"),
    ),
    Mutant(
        "gradients add up over the steps",
        "trainer.py",
        "self.optimizer.zero_grad(set_to_none=True)\n            self.distiller.zero_grad(set_to_none=True)",
        "pass",
        PLAIN_LOOP,
    ),
    Mutant(
        "student trained in eval mode",
        "trainer.py",
        "self.student.train()\n        for name",
        "pass\n        for name",
        (FIT_ANY,),
    ),
    Mutant(
        "sanity check moves the student's batch statistics",
        "distiller.py",
        "self.student.eval()  # so that no batch statistic moves",
        "self.student.train()",
        train("the_sanity_check_changes_nothing_in_the_student"),
    ),
    Mutant(
        "the same view in every epoch",
        "batches.py",
        "view=epoch % self.views if self.views else epoch,",
        "view=0,",
        train(
            "rule_3_the_teacher_sees_the_students_images", "rule_3_cached_outputs_train_the_same_student_as_live_ones"
        ),
    ),
    Mutant(
        "a loss that is not finite goes on",
        "training_log.py",
        'if math.isfinite(values["loss"]):\n            return',
        "return",
        train("rule_6_a_non_finite_loss_names_step_terms_and_checkpoint"),
    ),
    Mutant("resumed without the random state", "checkpoints.py", RNG, "pass", RESUMED),
    Mutant(
        "resumed without the optimizer's state",
        "checkpoints.py",
        'optimizer.load_state_dict({"state": state, "param_groups": groups})',
        "pass",
        RESUMED,
    ),
    Mutant(
        "resumed at the start of the epoch",
        "trainer.py",
        "first = self.step - epoch * self.steps_per_epoch",
        "first = 0",
        RESUMED,
    ),
    Mutant(
        "resumed without the method's projectors",
        "checkpoints.py",
        "for part, module in modules.items():\n            module.load_state_dict",
        "for part, module in list(modules.items())[:1]:\n            module.load_state_dict",
        RESUMED,
    ),
    # -------------------- any network, any batch, any loop
    Mutant(
        "distiller: losses under autocast",
        "distiller.py",
        "torch.autocast(device.type, enabled=False)",
        "nullcontext()",
        (DISTILLER,),
    ),
    Mutant(
        "distiller: hooks stay in the networks",
        "distiller.py",
        "with nullcontext(self.extractor) if self.extractor.active else self.extractor as extractor:",
        "with nullcontext(self.extractor.__enter__()) as extractor:",
        (DISTILLER,),
    ),
    Mutant(
        "adapter: the student's inputs for the teacher",
        "adapters.py",
        'return _field(batch, self.teacher_inputs, "teacher_inputs")',
        "return self.student_inputs_of(batch)",
        (DISTILLER,),
    ),
    Mutant(
        "adapter: labels are an input",
        "adapters.py",
        "*(LABEL_FIELDS if self.labels is None or callable(self.labels) else ())",
        "",
        (DISTILLER,),
    ),
    Mutant("task: padding counts", "tasks.py", "counts = flat != ignore_index", "counts = flat == flat", (TASKS,)),
    Mutant(
        "task: classes and pixels mixed",
        "tasks.py",
        "logits.movedim(1, -1).flatten(0, -2)",
        "logits.reshape(len(logits), *logits.shape[2:], -1).flatten(0, -2)",
        (TASKS,),
    ),
    Mutant(
        "task: several labels as classes of one",
        "tasks.py",
        "torch.stack((torch.zeros_like(logits), logits), dim=1)",
        "torch.stack((-logits, logits), dim=1)",
        (TASKS,),
    ),
    Mutant("accumulated gradients added up", "trainer.py", "losses.total / size if size > 1 else", "", (FIT_ANY,)),
    Mutant(
        "average of the weights never validated",
        "trainer.py",
        "evaluated = self.student if self.average is None else self.average.module",
        "evaluated = self.student",
        (FIT_ANY,),
    ),
    Mutant(
        "a dataset in one order for all epochs",
        "batches.py",
        'seed_for(self.seed, "epoch", number)',
        "self.seed",
        (FIT_ANY,),
    ),
    Mutant(
        "one dropout for all processes",
        "batches.py",
        'seed_for(seed, "process", rank) if rank else seed',
        "seed",
        (FIT_ANY,),
    ),
    Mutant(
        "ensemble: mean of logits",
        "teachers/ensemble.py",
        "math.log(w) + one.log_softmax(dim=classes)",
        "math.log(w) + one",
        (ENSEMBLE,),
    ),
    Mutant(
        "ensemble: temperatures not used",
        "teachers/ensemble.py",
        "one.float() / t for one, t in",
        "one.float() for one, t in",
        (ENSEMBLE,),
    ),
    Mutant("answers: probabilities for logits", "answers.py", "else values.log()", "else values", (ANSWERS,)),
    Mutant(
        "tokens: the last one left out, not the class token",
        "projectors.py",
        "output[:, output.shape[1] - math.prod(grid) :]",
        "output[:, : math.prod(grid)]",
        (PROJECTORS,),
    ),
    # -------------------- the command
    Mutant(
        "baseline with other initial weights",
        "distill.py",
        "stem=job.stem, seed=job.seed)",
        "stem=job.stem, seed=None)",
        ("tests/test_cli.py::test_baseline_and_student_start_from_the_same_weights",),
    ),
)


class Trees:
    """Copies of the tree in a temporary folder, each used by one run of tests at a time."""

    def __init__(self, root: Path, count: int) -> None:
        self._parent = tempfile.TemporaryDirectory(prefix="mutants-")
        self._free: queue.Queue[Path] = queue.Queue()
        ignore = shutil.ignore_patterns("__pycache__", ".hypothesis", "browser")
        for number in range(count):
            tree = Path(self._parent.name) / str(number)
            for name in ("kdlib", "tests"):
                shutil.copytree(root / name, tree / name, ignore=ignore)
            shutil.copy(root / "pyproject.toml", tree)
            (tree / "data").symlink_to(root / "data", target_is_directory=True)
            self._free.put(tree)

    def close(self) -> None:
        self._parent.cleanup()

    def pytest(
        self, tests: Sequence[str], mutant: Mutant | None = None, timeout: float = TIMEOUT
    ) -> tuple[int | None, str]:
        """The exit code of these tests, None if they took too long, and their output, with a fault or without."""
        tree = self._free.get()
        path = tree / "kdlib" / mutant.file if mutant else None
        text = path.read_text(encoding="utf-8") if path else ""
        try:
            if path and mutant:
                path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
            options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:nbval", "-p", "no:xdist"]
            command = [sys.executable, "-m", "pytest", *options, *tests]
            # No byte code is kept: of two faults of the same length within a second it would be the first one's.
            environment = {
                **os.environ,
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTHONPATH": str(tree),
                "OMP_NUM_THREADS": "1",
            }
            done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=timeout)
            return done.returncode, done.stdout + done.stderr
        except subprocess.TimeoutExpired:
            return None, ""
        finally:
            if path:
                path.write_text(text, encoding="utf-8")
            self._free.put(tree)


def judge(mutant: Mutant, root: Path, trees: Trees) -> tuple[str, float]:
    """What became of a fault, and the seconds it took."""
    started = time.monotonic()
    path = root / "kdlib" / mutant.file
    found = path.read_text(encoding="utf-8").count(mutant.old) if path.is_file() else 0
    if found != 1:
        return "OLD TEXT NOT FOUND" if found == 0 else f"OLD TEXT FOUND {found} TIMES", 0.0
    code, output = trees.pytest(mutant.tests, mutant)
    # pytest: 0 all passed, 1 some failed, 2 a file could not be imported, 4 no such test, 5 nothing collected
    verdict = {0: "SURVIVED", 1: "KILLED", None: "TOOK TOO LONG"}.get(code, f"TESTS DID NOT RUN (exit code {code})")
    if verdict.startswith("TESTS"):
        print(output[-2000:], flush=True)
    return verdict, time.monotonic() - started


def run(mutants: Sequence[Mutant], root: Path = ROOT, jobs: int = 2) -> int:
    """Judge the faults and print a line for each; 0 if all are killed, else 1."""
    started, trees = time.monotonic(), Trees(root, jobs)
    try:
        limit = 4 * TIMEOUT  # for the tests of all faults together
        code, output = trees.pytest(sorted({test for mutant in mutants for test in mutant.tests}), timeout=limit)
        if code is None:
            print(f"Without a fault the tests took longer than {limit} s: the machine is too busy to judge the faults.")
            return 1
        if code != 0:
            print(output[-3000:])
            print("The tests fail without any fault: nothing can be said of the faults.")
            return 1
        print(f"Without a fault all tests pass ({time.monotonic() - started:.0f} s).", flush=True)
        alive = 0
        with ThreadPoolExecutor(jobs) as pool:
            verdicts = pool.map(lambda mutant: judge(mutant, root, trees), mutants)
            for mutant, (verdict, seconds) in zip(mutants, verdicts, strict=True):
                alive += verdict != "KILLED"
                print(f"{verdict:12} {seconds:5.1f} s  {mutant.name}", flush=True)
        seconds = time.monotonic() - started
        print(f"{len(mutants) - alive} of {len(mutants)} faults killed, in {seconds:.0f} s.")
        return int(alive > 0)
    finally:
        trees.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only the faults whose name contains one of these")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    given = parser.parse_args()
    chosen = [one for one in MUTANTS if not given.words or any(word in one.name for word in given.words)]
    if not chosen:
        sys.exit(f"No fault has a name with {' or '.join(given.words)}.")
    sys.exit(run(chosen, jobs=given.jobs))
