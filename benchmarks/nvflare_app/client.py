"""A client trains the whole model on its own rows."""

import sys
from pathlib import Path

import nvflare.client as flare
import training

OF_MODEL = "model."
"""What the server's names of parameters begin with."""


def main(folder: str, steps: str) -> None:
    flare.init()
    part = int(str(flare.system_info()["site_name"]).rpartition("-")[2])
    while flare.is_running():
        received = flare.receive()
        state = {name.removeprefix(OF_MODEL): value for name, value in received.params.items()}
        state, loss, _ = training.visit(Path(folder), part, received.current_round + 1, state, int(steps))
        params = {f"{OF_MODEL}{name}": value for name, value in state.items()}
        flare.send(flare.FLModel(params=params, metrics={"loss": loss}, meta={"NUM_STEPS_CURRENT_ROUND": int(steps)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
