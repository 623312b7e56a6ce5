"""What the demo measures outside of the system, each in a process of its own: `python -m examples.demo.measure WHAT …`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from examples.demo.system import ENVIRONMENT


def in_process(what: str, *arguments: str) -> Any:
    """Run one measurement in a fresh process and return its JSON answer."""
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo.measure", what, *arguments], env=ENVIRONMENT, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"measuring {what} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def full_memory(run_json: str, blobs: str, data: str, threads: str) -> dict[str, float]:
    """Peak memory and step time of full fine-tuning: a visit of the agents' own training loop, with all blocks open."""
    import tempfile

    import torch

    from fedcybgd.agent.messages import DataSource, LocalShard, TrainRequest
    from fedcybgd.agent.training.visitor import Visitor
    from fedcybgd.coordinator.storage import open_store
    from fedcybgd.shared.contract.assignments import LeasedAssignment
    from fedcybgd.shared.contract.training import ParameterGroup

    torch.set_num_threads(int(threads))
    store = open_store(Path(blobs))
    assignment = LeasedAssignment.model_validate_json(run_json)
    blocks = assignment.manifest.blocks
    rate = assignment.train.groups[0].learning_rate / 10
    settings = assignment.train.model_copy(update={"groups": [ParameterGroup(blocks=[b.block for b in blocks], learning_rate=rate)]})
    with tempfile.TemporaryDirectory() as scratch:
        request = TrainRequest(
            assignment_id="full", files={f.name: str(store.path(f.digest)) for f in assignment.manifest.files}, model_key="full",
            shards=[LocalShard(block=b.block, digest=b.digest, codec=b.codec, path=str(store.path(b.digest)), size=b.size) for b in blocks],
            train=settings, data=DataSource(path=data), delta_path=f"{scratch}/delta.safetensors",
        )  # fmt: skip
        metrics = Visitor("cpu", whole_tables=True).visit(request, lambda _: None, lambda: False)
    return {"peak_bytes": metrics.peak_memory_bytes, "seconds_a_step": metrics.seconds / metrics.steps}


def score(directory: str, task: str, held_out: str, max_length: str) -> dict[str, float]:
    """Load an exported directory as anybody would, with from_pretrained, and score it on the held-out rows."""
    import torch
    import transformers

    from fedcybgd.shared.contract.task import TaskSpec
    from fedcybgd.shared.files.tables import read_examples
    from fedcybgd.shared.models.batches import chunks, forward_logits, loss_sum
    from fedcybgd.shared.models.row_encoder import row_encoder

    auto = transformers.AutoModelForSequenceClassification if task == "text-classification" else transformers.AutoModelForCausalLM
    model = auto.from_pretrained(directory).eval()
    spec = TaskSpec.model_validate({"task": task, "max_length": max_length})
    rows = row_encoder(Path(directory), spec).encoded(read_examples(Path(held_out), spec, {}))
    order = sorted(range(len(rows)), key=rows.length)
    total, count, right = 0.0, 0, 0
    with torch.inference_mode():
        for indices in chunks(order, 32):
            batch = rows.batch(indices)
            logits = forward_logits(model, batch)
            loss, predictions = loss_sum(logits, batch, task)  # type: ignore[arg-type]
            total, count = total + float(loss), count + predictions
            if task == "text-classification":
                right += int((logits.argmax(-1) == batch.labels).sum())
    return {"loss": total / count, "accuracy": right / count, "rows": len(rows)}


def sample(directory: str, *prompts: str) -> list[str]:
    """Text that a model writes on, from a fixed seed."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    texts = []
    for prompt in prompts:
        torch.manual_seed(0)
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=90, do_sample=True, temperature=0.7, top_k=40, pad_token_id=0
        )
        texts.append(tokenizer.decode(out[0], skip_special_tokens=True).strip())
    return texts


if __name__ == "__main__":
    answer = {"full_memory": full_memory, "score": score, "sample": sample}[sys.argv[1]](*sys.argv[2:])
    print(json.dumps(answer))
