"""What the hardware does natively, detected and never assumed."""

import torch


def has_native_bf16(use_cpu: bool = False) -> bool:
    """Say whether matrix products run natively in bfloat16 on the device that training will use.

    True for Ampere and later GPUs, and for CPUs with AVX-512-BF16 or AMX. Emulated bfloat16 is slower than float32 and
    counts as False.

    Args:
        use_cpu: Training is to run on the CPU even where there is an accelerator.
    """
    if torch.cuda.is_available() and not use_cpu:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.accelerator.is_available() and not use_cpu:
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
