"""What makes every stage faster on a CPU: memory that is kept, and matrix products by oneDNN where MKL's are slow."""

from __future__ import annotations

import ctypes
import functools
import warnings
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
LARGEST_INT = 2**31 - 1

ONEDNN_PAYS_FROM = 2**21
"""Multiplications from which oneDNN's product is faster than MKL's: below it looking up its kernel costs more than is gained."""


def use(threads: int) -> None:
    """Set this process up for training: torch uses this many CPU threads (0: its default), memory is kept, products are fast.

    Results are bit-equal only for equal numbers of threads, on processors of one kind.
    """
    if threads:
        torch.set_num_threads(threads)
    keep_memory()
    use_onednn()


def keep_memory() -> None:
    """Let glibc keep what is freed: large tensors come and go at every operation, and each new page costs a fault.

    The process stays as large as it ever was. Elsewhere than with glibc this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, LARGEST_INT)
        mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25)  # older ones take 32 MiB at most


@functools.cache
def use_onednn() -> None:
    """On AMD processors with AVX-512 (Zen 4 and later), multiply float32 matrices with oneDNN.

    torch's float32 products are MKL's, which on AMD stays with AVX2: half of what such a processor can do. Both ship in torch.
    The kernels are replaced in torch's dispatcher (torch.library), so that every layer's forward and backward pass has them.
    """
    if not (is_amd() and torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.backends.mkldnn.is_available()):
        return
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*Overriding a previously registered kernel")
        library.impl("mm", product, "CPU")
        library.impl("addmm", biased_product, "CPU")
    own = torch.library.Library("heed", "DEF")  # by name, for compiled layers
    own.define("product(Tensor a, Tensor b) -> Tensor")
    own.define("biased_product(Tensor bias, Tensor a, Tensor b) -> Tensor")
    own.impl("product", product, "CPU")
    own.impl("biased_product", biased_product, "CPU")
    own.impl("product", lambda a, b: a.new_empty(a.shape[0], b.shape[1]), "Meta")
    own.impl("biased_product", lambda bias, a, b: a.new_empty(a.shape[0], b.shape[1]), "Meta")
    _LIBRARIES.extend((library, own))


_LIBRARIES: list[torch.library.Library] = []  # what they registered goes with them


def has_onednn() -> bool:
    """Whether `use_onednn` put its products into torch."""
    return bool(_LIBRARIES)


def is_amd() -> bool:
    """Whether Linux says that AMD made this processor."""
    facts = Path("/proc/cpuinfo")
    return facts.exists() and "AuthenticAMD" in facts.read_text()


def product(a_MK: torch.Tensor, b_KN: torch.Tensor) -> torch.Tensor:
    """a · b, by oneDNN where that pays."""
    if not pays(a_MK, b_KN):
        return torch.mm(a_MK, b_KN, out=a_MK.new_empty(a_MK.shape[0], b_KN.shape[1]))
    # torch copies the left matrix unless it lies by rows: in a weight's gradient the wider of the two is often that one
    swapped = copied(b_KN.t()) + a_MK.shape[0] * b_KN.shape[1]
    if copied(a_MK) > swapped:
        return torch.ops.mkldnn._linear_pointwise(b_KN.t(), a_MK, None, "none", [], "").t().contiguous()
    return torch.ops.mkldnn._linear_pointwise(a_MK, b_KN.t(), None, "none", [], "")


def copied(a_MK: torch.Tensor) -> int:
    """Numbers that oneDNN's product copies of its left matrix."""
    return 0 if a_MK.is_contiguous() else a_MK.numel()


def biased_product(
    bias: torch.Tensor, a_MK: torch.Tensor, b_KN: torch.Tensor, *, beta: float = 1, alpha: float = 1
) -> torch.Tensor:
    """beta · bias + alpha · a · b; by oneDNN where that pays, for one bias per column and no factors."""
    if pays(a_MK, b_KN) and beta == alpha == 1 and bias.dim() == 1 and bias.dtype == a_MK.dtype:
        return torch.ops.mkldnn._linear_pointwise(a_MK, b_KN.t(), bias.contiguous(), "none", [], "")
    out_MN = a_MK.new_empty(a_MK.shape[0], b_KN.shape[1])
    return torch.addmm(bias, a_MK, b_KN, beta=beta, alpha=alpha, out=out_MN)


def pays(a_MK: torch.Tensor, b_KN: torch.Tensor) -> bool:
    """Whether oneDNN's product of these is faster than MKL's."""
    return a_MK.dtype == b_KN.dtype == torch.float32 and a_MK.shape[0] * b_KN.numel() >= ONEDNN_PAYS_FROM
