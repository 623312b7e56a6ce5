"""Tiny tensors are slower on many threads than on one."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
