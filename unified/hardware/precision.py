"""The precision of matrix products, which autocast may set while weights stay as stored."""

import torch


def product_dtype(device: torch.device, stored: torch.dtype) -> torch.dtype:
    """The dtype in which products run on `device`: autocast's where it is on, else that of what is `stored`."""
    kind = device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else stored
