"""Makes a quantized matrix dense on a CUDA card in one pass over it, where torch's own operations take ten.

NVRTC compiles it when it is first needed; that comes with torch's builds for CUDA, so neither a compiler nor a cache on the disk is. The values
are those that a CPU makes, to the bit: a product and a sum in float32, rounded to bfloat16 once.
"""

import functools
import logging
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger("fedcybgd.card")
THREADS = 256
VALUES = 8
"""that a thread makes: 16 bytes, which is what it can store at once"""
SOURCE = r"""
__device__ unsigned int rounded(float value) {
    unsigned int bits = __float_as_uint(value);
    return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}
__device__ float wide(unsigned short value) { return __uint_as_float((unsigned int)value << 16); }

extern "C" __global__ void dense4(
    const unsigned int* codes, const unsigned short* scales, const unsigned short* offsets, uint4* out, int words, int per_row, int groups) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= words) return;
    int group = i / per_row * groups + i % per_row / 8;
    float scale = wide(scales[group]), offset = wide(offsets[group]);
    unsigned int word = codes[i], made[4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
        unsigned int even = rounded(__fadd_rn(__fmul_rn((float)(word >> 8 * k & 15u), scale), offset));
        unsigned int odd = rounded(__fadd_rn(__fmul_rn((float)(word >> 8 * k + 4 & 15u), scale), offset));
        made[k] = even | (odd << 16);
    }
    out[i] = make_uint4(made[0], made[1], made[2], made[3]);
}

extern "C" __global__ void dense8(const uint2* codes, const unsigned short* scales, uint4* out, int words, int per_row, int groups) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= words) return;
    float scale = wide(scales[i / per_row * groups + i % per_row / 8]);
    uint2 word = codes[i];
    unsigned int made[4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
        unsigned int pair = (k < 2 ? word.x : word.y) >> (16 * (k % 2));
        unsigned int even = rounded(__fmul_rn((float)(signed char)(pair & 255u), scale));
        unsigned int odd = rounded(__fmul_rn((float)(signed char)((pair >> 8) & 255u), scale));
        made[k] = even | (odd << 16);
    }
    out[i] = make_uint4(made[0], made[1], made[2], made[3]);
}
"""


def dense(codes: Tensor, scales: Tensor, offsets: Tensor | None) -> Tensor | None:
    """The bfloat16 values of codes on a card, with `offsets` two to a byte; None where there is no kernel for them."""
    name, word = ("dense8", VALUES) if offsets is None else ("dense4", VALUES // 2)
    aligned = codes.shape[-1] % word == 0 and codes.data_ptr() % word == 0
    whole = all(tensor.is_contiguous() for tensor in (codes, scales, *([] if offsets is None else [offsets])))
    if not (aligned and whole and codes.numel()) or (kernel := _kernel(name)) is None:
        return None
    words, per_row = codes.numel() // word, codes.shape[-1] // word
    made = torch.empty(*codes.shape[:-1], per_row * VALUES, dtype=torch.bfloat16, device=codes.device)
    tensors = [codes, scales, made] if offsets is None else [codes, scales, offsets, made]
    blocks = (words + THREADS - 1) // THREADS
    kernel(grid=(blocks, 1, 1), block=(THREADS, 1, 1), args=[*tensors, words, per_row, scales.shape[-1]])
    return made


@functools.cache
def _kernel(name: str) -> Any | None:
    try:
        return torch.cuda._compile_kernel(SOURCE, name)
    except Exception as error:  # a torch without NVRTC, or one that calls it otherwise: it is slower without
        log.warning("quantized blocks are made dense by torch's own operations, which is slower: %s: %s", type(error).__name__, error)
        return None
