"""Measure what the machine can do at most: a large matrix product, and copies within the device and to it."""

from on_gpu.common import Context

MIB = 2**20


def measure(context: Context) -> dict[str, object]:
    """Return TFLOP/s and GB/s, medians."""
    found = {f"matmul_{name}_tflops": matmul_tflops(context, name) for name in ("float16", "bfloat16")}
    found["copy_on_device_gb_s"] = copy_on_device(context)
    found |= copy_to_device(context)
    context.show(["", "measured"], [(name, f"{value:,.4g}") for name, value in found.items()])
    return {**found, "bars": {"unit": "TFLOP/s", "values": {k: v for k, v in found.items() if "tflops" in k}}}


def matmul_tflops(context: Context, dtype: str) -> float:
    """Return the TFLOP/s of a product of two square matrices of random numbers, as zeros take a chip less power."""
    import torch

    n = context.sized(8192, 256)
    a, b = (torch.randn(n, n, device=context.device).to(getattr(torch, dtype)) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * n**3 / context.median_s(lambda: torch.matmul(a, b, out=out), context.sized(20, 3)) / 1e12


def copy_on_device(context: Context) -> float:
    """Return GB/s of a copy, counting both the bytes read and those written."""
    import torch

    source = torch.randint(256, (context.sized(1024, 8) * MIB,), dtype=torch.uint8, device=context.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / context.median_s(lambda: target.copy_(source), context.sized(20, 3)) / 1e9


def copy_to_device(context: Context) -> dict[str, float]:
    """Return GB/s from ordinary memory, and on a GPU also from pinned memory."""
    import torch

    host = torch.randint(256, (context.sized(256, 8) * MIB,), dtype=torch.uint8)
    target = torch.empty(host.shape, dtype=host.dtype, device=context.device)
    kinds = {"pageable": host} | ({} if context.device == "cpu" else {"pinned": host.pin_memory()})
    repeats = context.sized(20, 3)
    found = {}
    for kind, memory in kinds.items():
        seconds = context.median_s(lambda memory=memory: target.copy_(memory, non_blocking=True), repeats)  # type: ignore[misc]
        found[f"copy_{kind}_to_device_gb_s"] = host.nbytes / seconds / 1e9
    return found
