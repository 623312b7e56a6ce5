"""Runs as a program of its own, on a tokenizer.json of strangers: what takes for ever here can be ended, and what takes gigabytes ends.

Reads texts as a JSON list from its input and encodes them; says nothing, or why it could not.
"""

import json
import resource
import sys

if __name__ == "__main__":
    from tokenizers import Tokenizer

    resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[2]), int(sys.argv[2])))

    tokenizer = Tokenizer.from_file(sys.argv[1])
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for text in json.load(sys.stdin):
        tokenizer.encode(text)
