"""A client trains the whole model on its own rows."""

import time
from pathlib import Path

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from intents import training

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    folder, part = Path(str(context.run_config["folder"])), int(context.node_config["partition-id"])
    with (folder / "trained.txt").open("a") as file:
        file.write(f"{time.time()} begins {part} {message.content['config']['server-round']}\n")
    model, tokenizer = training.made(folder)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    rows = training.rows_of(folder / f"agent-{part}.jsonl")
    loss = training.train(model, tokenizer, rows, int(context.run_config["steps"]), part)
    with (folder / "trained.txt").open("a") as file:
        file.write(f"{time.time()} ends {part} {message.content['config']['server-round']}\n")
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"loss": loss, "num-examples": len(rows)})})
    return Message(content=content, reply_to=message)
