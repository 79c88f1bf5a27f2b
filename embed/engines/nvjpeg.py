"""Decode JPEGs on a device by NVIDIA's nvJPEG, through nvImageCodec where it is installed, else through torchvision."""

import os
import warnings
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Library = Literal["nvimgcodec", "torchvision"]

WITHOUT_CUDA = -99999  # NVIMGCODEC_DEVICE_CPU_ONLY


def installed_library() -> Library:
    """Return nvImageCodec if it is installed, because torchvision is going to drop its decoder."""
    return "nvimgcodec" if find_spec("nvidia") is not None and find_spec("nvidia.nvimgcodec") else "torchvision"


def decode(files: Sequence[bytes], device: str, library: Library) -> "list[Tensor]":
    """Return pictures on the device, uint8 (3, h, w), RGB, not turned by their EXIF.

    On a CPU, the same libraries decode with libjpeg-turbo. Raise RuntimeError if one picture cannot be decoded.
    """
    return _by_nvimgcodec(files, device) if library == "nvimgcodec" else _by_torchvision(files, device)


def _by_nvimgcodec(files: Sequence[bytes], device: str) -> "list[Tensor]":
    import torch

    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")  # it prints lines for each picture that it cannot decode
    from nvidia import nvimgcodec

    on_cuda = torch.device(device).type == "cuda"
    params = nvimgcodec.DecodeParams(
        apply_exif_orientation=False,
        color_spec=nvimgcodec.ColorSpec.SRGB,
        sample_format=nvimgcodec.SampleFormat.P_RGB,
    )
    stream = torch.cuda.current_stream(device).cuda_stream if on_cuda else 0
    streams = [nvimgcodec.CodeStream(data) for data in files]
    decoded = _nvimgcodec_decoder(device).decode(streams, params=params, cuda_stream=stream)
    if failed := sum(picture is None for picture in decoded):
        raise RuntimeError(f"nvImageCodec could not decode {failed} of {len(files)} pictures")
    return [torch.as_tensor(picture if on_cuda else np.asarray(picture), device=device) for picture in decoded]


@cache
def _nvimgcodec_decoder(device: str) -> Any:
    """Return the decoder of a device. It lives as long as the process, because making one takes longer than a batch."""
    import torch
    from nvidia import nvimgcodec

    kinds = nvimgcodec.BackendKind
    if torch.device(device).type != "cuda":
        return nvimgcodec.Decoder(device_id=WITHOUT_CUDA, backends=[nvimgcodec.Backend(kinds.CPU_ONLY)])
    # Without the backend CPU_ONLY, because the certificate is of the device's pixels.
    backends = [nvimgcodec.Backend(kind) for kind in (kinds.HW_GPU_ONLY, kinds.GPU_ONLY, kinds.HYBRID_CPU_GPU)]
    index = torch.device(device).index
    return nvimgcodec.Decoder(device_id=torch.cuda.current_device() if index is None else index, backends=backends)


def _by_torchvision(files: Sequence[bytes], device: str) -> "list[Tensor]":
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    encoded = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]
    with warnings.catch_warnings():  # torchvision warns that its decoder will move to another package
        warnings.simplefilter("ignore")
        decoded: list[Tensor] = decode_jpeg(encoded, mode=ImageReadMode.RGB, device=device)
    return decoded
