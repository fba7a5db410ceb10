"""Which number format trains fastest here without harm."""

from __future__ import annotations

from pathlib import Path

import keras

_CPU_FLAGS = ("amx_bf16", "avx512_bf16")  # the instructions oneDNN's bfloat16 kernels are built on
_FIRST_BF16_CAPABILITY = (8, 0)  # NVIDIA Ampere


def set_policy(precision: str) -> str:
    """Makes Keras build layers in `precision` from here on.

    Args:
        precision: "float32", "bfloat16" (variables stay float32) or "auto": bfloat16 where this
            machine's GPU or processor computes in it natively, float32 elsewhere.

    Returns:
        The name of the Keras dtype policy: "float32" or "mixed_bfloat16".
    """
    fast = precision == "bfloat16" or (precision == "auto" and bfloat16_is_native())
    policy = "mixed_bfloat16" if fast else "float32"
    keras.config.set_dtype_policy(policy)
    return policy


def bfloat16_is_native() -> bool:
    """Whether the GPU, or without one the processor, has bfloat16 instructions."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        if gpus:
            details = tf.config.experimental.get_device_details(gpus[0])
            return details.get("compute_capability", (0, 0)) >= _FIRST_BF16_CAPABILITY
        return _cpu_has_bfloat16()
    if backend == "torch":
        import torch

        return bool(torch.cuda.is_available() and torch.cuda.is_bf16_supported())
    import jax

    return jax.default_backend() in ("gpu", "tpu")


def _cpu_has_bfloat16() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return False
    text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return any(flag in flags for flag in _CPU_FLAGS)
