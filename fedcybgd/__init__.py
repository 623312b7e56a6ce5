"""FedCyBGD: federated fine-tuning of all parameters of a language model, one block at a time."""
