"""What both sides sign: messages, names, digests, errors. No torch, no files, no network."""
