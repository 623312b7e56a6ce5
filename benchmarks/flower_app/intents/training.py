"""What both sides of an app do with the model: MiniLM with a head for intents."""

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

BATCH, RATE, LENGTH, LABELS = 16, 2e-4, 64, 77


def made(folder: Path) -> tuple[nn.Module, Any]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "model", num_labels=LABELS)
    return model, transformers.AutoTokenizer.from_pretrained(folder / "model")


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def visit(folder: Path, part: int, number: int, state: dict[str, Any], steps: int) -> tuple[dict[str, Any], float, int]:
    """What a client does with the model that it gets in a round, counted from 1: the trained one, its loss, and how many rows there are."""

    def tell(what: str) -> None:
        with (folder / "trained.txt").open("a") as file:
            file.write(f"{time.time()} {what} {part} {number}\n")

    tell("begins")
    model, tokenizer = made(folder)
    model.load_state_dict(state)
    rows = rows_of(folder / f"agent-{part}.jsonl")
    loss = train(model, tokenizer, rows, steps, part)
    tell("ends")
    return model.state_dict(), loss, len(rows)


def train(model: nn.Module, tokenizer: Any, rows: list[dict[str, Any]], steps: int, seed: int) -> float:
    """AdamW over so many batches; the last loss."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    optimizer, loss = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01), torch.tensor(0.0)
    model.train()
    for step in range(steps):
        some = [rows[order[(step * BATCH + i) % len(order)]] for i in range(BATCH)]
        words = tokenizer([row["text"] for row in some], padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
        loss = model(**words, labels=torch.tensor([row["label"] for row in some])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss)
