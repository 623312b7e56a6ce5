"""The model that NVFlare's server begins with."""

from pathlib import Path

import training
from torch import nn


class Intents(nn.Module):
    def __init__(self, folder: str) -> None:
        super().__init__()
        self.model, _ = training.made(Path(folder))
