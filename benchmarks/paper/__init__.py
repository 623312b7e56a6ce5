"""What the paper left open, as programs: a file a question, `python -m benchmarks.paper QUESTION`; their answers are in docs/paper.md."""
