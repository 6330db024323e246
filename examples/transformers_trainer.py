"""Distillation with the Trainer of transformers: the distiller is its model, and no subclass is needed.

python examples/transformers_trainer.py
"""

from __future__ import annotations

import tempfile

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from kdlib.distiller import Distiller
from kdlib.methods import Feature, Logit

Fields = dict[str, Tensor]
TOKENS, LENGTH, CLASSES = 60, 12, 3


class Sentences(Dataset):
    """Random tokens; the class of a sentence is the third of the vocabulary that its first token comes from."""

    def __init__(self, samples: int = 128) -> None:
        self.tokens = torch.randint(TOKENS, (samples, LENGTH))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Fields:
        tokens = self.tokens[index]
        return {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "labels": tokens[0] * CLASSES // TOKENS,
        }


def build_distiller(example: Fields) -> Distiller:
    """A DistilBERT, taught by a BERT; both tiny, with random weights. example: a batch, for the projector's sizes."""
    small = DistilBertConfig(vocab_size=TOKENS, dim=16, hidden_dim=32, n_heads=2, n_layers=1)
    large = BertConfig(
        vocab_size=TOKENS, hidden_size=32, intermediate_size=64, num_attention_heads=2, num_hidden_layers=2
    )
    small.num_labels = large.num_labels = CLASSES
    student = DistilBertForSequenceClassification(small)
    teacher = BertForSequenceClassification(large)  # load a trained teacher here: from_pretrained(...)
    layers = {"distilbert.transformer.layer.0": "bert.encoder.layer.1"}
    method = Logit(temperature=4, alpha=0.1) + 10 * Feature(layers)
    return Distiller(student, teacher, method, example=example)


def distil(distiller: Distiller, dataset: Dataset, *, epochs: int = 1, learning_rate: float = 0.01) -> None:
    """Trainer calls the distiller with the fields of a batch and takes the first of its results as the loss."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=16,
            learning_rate=learning_rate,
            lr_scheduler_type="constant",
            optim="sgd",
            max_grad_norm=0,
            use_cpu=True,
            remove_unused_columns=False,  # the fields are the student's, and Trainer sees only the distiller
            label_names=["labels"],  # Trainer.evaluate then gives the loss, too
            report_to="none",
            save_strategy="no",  # a student with tied weights is saved by distiller.student.save_pretrained instead
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = Trainer(model=distiller, args=arguments, train_dataset=dataset)
        trainer.remove_callback(PrinterCallback)
        trainer.train()


@torch.no_grad()
def mean_loss(distiller: Distiller, dataset: Sentences) -> float:
    """The loss of these sentences, without training."""
    distiller.eval()
    return distiller(default_collate([dataset[number] for number in range(len(dataset))])).total.item()


def main() -> None:
    """Train for five epochs."""
    torch.manual_seed(0)
    dataset = Sentences()
    distiller = build_distiller(example=default_collate([dataset[0], dataset[1]]))
    print(f"loss before: {mean_loss(distiller, dataset):.3f}")
    distil(distiller, dataset, epochs=5)
    print(f"loss after: {mean_loss(distiller, dataset):.3f}")


if __name__ == "__main__":
    main()
