"""Fine-tunes a real pretrained model with a coordinator and six agents, as real processes over HTTP on this machine."""
