"""The one door to torch for timings; who comes without it is told what to install."""

from __future__ import annotations

from moesim.errors import MissingPackageError

try:
    import torch
    import torch.distributed
    import torch.nn.attention
    from torch import Tensor
    from torch.nn import functional
except ImportError as error:
    raise MissingPackageError("timing kernels and collectives needs torch: pip install 'moesim[trace]'") from error

__all__ = ["Tensor", "functional", "torch"]
