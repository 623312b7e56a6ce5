"""A client trains the whole model on its own rows."""

from pathlib import Path

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from intents import training

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    said, number = context.run_config, int(message.content["config"]["server-round"])
    received, part = message.content["arrays"].to_torch_state_dict(), int(context.node_config["partition-id"])
    state, loss, rows = training.visit(Path(str(said["folder"])), part, number, received, int(said["steps"]))
    content = RecordDict({"arrays": ArrayRecord(state), "metrics": MetricRecord({"loss": loss, "num-examples": rows})})
    return Message(content=content, reply_to=message)
