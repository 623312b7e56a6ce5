"""The contract between coordinator and agent: everything that both sides must understand alike."""
