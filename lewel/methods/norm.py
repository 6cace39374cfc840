"""Batch normalisation over the images of all processes (SyncBN)."""

from __future__ import annotations

import torch
import torch.distributed.nn.functional as differentiable
from torch import Tensor, nn

from lewel import distributed


def synchronise(module: nn.Module, device: torch.device) -> nn.Module:
    """module with every BN replaced by one over all processes; weights, statistics and names stay.

    On GPUs these are PyTorch's (or timm's), which refuse the CPU and wait for the device in every layer. On the CPU
    they are _SyncBatchNorm.
    """
    if device.type == "cuda":
        if any(isinstance(child, nn.BatchNorm2d) and hasattr(child, "act") for child in module.modules()):
            from timm.layers import convert_sync_batchnorm  # PyTorch's would leave out the activation in timm's BN

            return convert_sync_batchnorm(module)
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for name, child in module.named_children():
        if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
            synced = _SyncBatchNorm(child.num_features, child.eps, child.momentum, child.affine)
            synced.load_state_dict(child.state_dict())
            synced.requires_grad_(all(p.requires_grad for p in child.parameters()))
            if isinstance(act := getattr(child, "act", None), nn.Module):
                synced.act = act
            setattr(module, name, synced)
        else:
            synchronise(child, device)
    return module


class _SyncBatchNorm(nn.BatchNorm2d):
    """x (N, C, ...): mean and variance over N and the rest, of all processes; then act, which timm's BN holds."""

    act: nn.Module  # only where the BN that it replaces was timm's; an nn.Identity would be a layer of every BN

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or distributed.size() == 1:
            return self._activated(super().forward(x))
        over = [dim for dim in range(x.ndim) if dim != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        rows = differentiable.all_reduce(torch.tensor(float(x.numel() // x.shape[1])))
        mean = differentiable.all_reduce(wide.sum(over)) / rows
        centred = wide - mean.view(shape)
        variance = differentiable.all_reduce(centred.square().sum(over)) / rows
        with torch.no_grad():
            self._buffers["running_mean"].lerp_(mean, self.momentum)  # type: ignore
            self._buffers["running_var"].lerp_(variance * rows / (rows - 1), self.momentum)  # type: ignore
            self._buffers["num_batches_tracked"].add_(1)  # type: ignore
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scaled = centred * (self.weight * scale).view(shape) + self.bias.view(shape)
        else:
            scaled = centred * scale.view(shape)
        return self._activated(scaled.to(x.dtype))

    def _activated(self, x: Tensor) -> Tensor:
        return self.act(x) if hasattr(self, "act") else x
