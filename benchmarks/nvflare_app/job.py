"""The job that NVFlare's server averages whole models by: its own recipe, written to a folder."""

import os
import sys
from pathlib import Path

from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe


def main(folder: str, rounds: str, steps: str, clients: str, training: str, to: str) -> None:
    os.chdir(Path(__file__).parent)
    recipe = FedAvgRecipe(
        name="intents",
        model={"class_path": "model.Intents", "args": {"folder": folder}},
        min_clients=int(clients),
        num_rounds=int(rounds),
        train_script="client.py",
        train_args=f"{folder} {steps}",
    )
    recipe.add_server_file("model.py")
    recipe.add_server_file(training)
    recipe.add_client_file(training)
    recipe.export(to)


if __name__ == "__main__":
    main(*sys.argv[1:])
