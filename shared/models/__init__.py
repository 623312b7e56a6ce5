"""Models: blocks, layers, assembly, tokens. Loads torch and transformers."""
