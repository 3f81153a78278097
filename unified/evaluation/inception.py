"""The Inception network of FID: 2,048 features of an image, with the weights behind published numbers.

Legend: B batch, H W pixels, N images, D features.

It is TensorFlow's network of December 2015 (Szegedy et al., arXiv 1512.00567), whose pooling and resizing differ from
torchvision's. Module names are those of the two files that carry its weights, either of which `load` reads:
`weights-inception-2015-12-05-6726825d.pth` (torch-fidelity's and torchmetrics') and
`pt_inception-2015-12-05-6726825d.pth` (pytorch-fid's). Written out here since those packages need torchvision, whose
build on PyPI is for CUDA and does not import beside a CPU build of torch.
"""

import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WEIGHTS = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")

Kernel = int | tuple[int, int]
Step = tuple[int, *tuple[Kernel, ...]]  # width, then a kernel; two kernels stand side by side


class Convolution(nn.Module):
    """Convolution, normalisation, ReLU; the sides are kept unless `padded` is off."""

    def __init__(self, width_in: int, width: int, kernel: Kernel, stride: int = 1, padded: bool = True) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2, sides[1] // 2) if padded else (0, 0)
        self.conv = nn.Conv2d(width_in, width, sides, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.ModuleDict):
    """Branches of convolutions and a pool on the same input, concatenated: (B, width_in, h, w) -> (B, width, h, w).

    `halving` blocks end every branch with stride 2 and have no convolution behind their pool; `max_pool` is for the
    last block, whose pool TensorFlow's network has by mistake.
    """

    def __init__(
        self, width_in: int, branches: dict[str, tuple[Step, ...]], halving: bool = False, max_pool: bool = False
    ) -> None:
        super().__init__()
        self.halving, self.max_pool, self.width = halving, max_pool, width_in if halving else 0
        self.names: dict[str, list[list[str]]] = {}
        for branch, steps in branches.items():
            width_before, self.names[branch] = width_in, []
            for number, (width, *kernels) in enumerate(steps, start=1):
                place = f"{branch}_{number}" if len(steps) > 1 else branch
                names = [place + letter for letter in "ab"] if len(kernels) > 1 else [place]
                last = halving and number == len(steps)
                for name, kernel in zip(names, kernels, strict=True):
                    self[name] = Convolution(width_before, width, kernel, 2 if last else 1, padded=not last)
                self.names[branch].append(names)
                width_before = width * len(kernels)
            self.width += width_before

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for branch, steps in self.names.items():
            h = self.pool(x) if branch == "branch_pool" else x
            for names in steps:
                h = torch.cat([self[name](h) for name in names], dim=1)
            outputs.append(h)
        return torch.cat(outputs + [self.pool(x)] * self.halving, dim=1)

    def pool(self, x: Tensor) -> Tensor:
        """What the pooling branch begins with."""
        if self.halving:
            return F.max_pool2d(x, 3, stride=2)
        if self.max_pool:
            return F.max_pool2d(x, 3, stride=1, padding=1)
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _block_a(pooled: int) -> dict[str, tuple[Step, ...]]:
    wide, deep = ((48, 1), (64, 5)), ((64, 1), (96, 3), (96, 3))
    return {"branch1x1": ((64, 1),), "branch5x5": wide, "branch3x3dbl": deep, "branch_pool": ((pooled, 1),)}


def _block_c(width: int) -> dict[str, tuple[Step, ...]]:
    wide = ((width, 1), (width, (1, 7)), (192, (7, 1)))
    deep = ((width, 1), (width, (7, 1)), (width, (1, 7)), (width, (7, 1)), (192, (1, 7)))
    return {"branch1x1": ((192, 1),), "branch7x7": wide, "branch7x7dbl": deep, "branch_pool": ((192, 1),)}


_BLOCK_B: dict[str, tuple[Step, ...]] = {"branch3x3": ((384, 3),), "branch3x3dbl": ((64, 1), (96, 3), (96, 3))}
_BLOCK_D: dict[str, tuple[Step, ...]] = {
    "branch3x3": ((192, 1), (320, 3)),
    "branch7x7x3": ((192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3)),
}
_BLOCK_E: dict[str, tuple[Step, ...]] = {
    "branch1x1": ((320, 1),),
    "branch3x3": ((384, 1), (384, (1, 3), (3, 1))),
    "branch3x3dbl": ((448, 1), (384, 3), (384, (1, 3), (3, 1))),
    "branch_pool": ((192, 1),),
}


class Inception(nn.Module):
    """Features for FID: uint8 images (B, H, W, 3) of any size -> (B, 2048)."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, stride=2, padded=False)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, padded=False)
        self.mixed: list[str] = []
        self.width = 192
        for letter, pooled in zip("bcd", (32, 64, 64), strict=True):
            self.add(f"Mixed_5{letter}", _block_a(pooled))
        self.add("Mixed_6a", _BLOCK_B, halving=True)
        for letter, width in zip("bcde", (128, 160, 160, 192), strict=True):
            self.add(f"Mixed_6{letter}", _block_c(width))
        self.add("Mixed_7a", _BLOCK_D, halving=True)
        self.add("Mixed_7b", _BLOCK_E)
        self.add("Mixed_7c", _BLOCK_E, max_pool=True)
        self.requires_grad_(False).eval()

    def add(self, name: str, branches: dict[str, tuple[Step, ...]], **settings: bool) -> None:
        """Append a block."""
        block = Mixed(self.width, branches, **settings)
        self.add_module(name, block)
        self.mixed.append(name)
        self.width = block.width

    @classmethod
    def load(cls, path: str | None = None) -> "Inception":
        """The network with weights from `path`, or from torch.hub's cache where one of the packages has put them.

        Raises ValueError where there are none, or others.
        """
        file = find_weights(path)
        try:
            stored = torch.load(file, weights_only=True, map_location="cpu")
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
            raise ValueError(f"{file} holds no weights ({error!s:.80}); give {' or '.join(WEIGHTS)}") from None
        model = cls()
        wanted = {name: tensor for name, tensor in model.state_dict().items() if "num_batches" not in name}
        wrong = [name for name, tensor in wanted.items() if getattr(stored.get(name), "shape", None) != tensor.shape]
        if wrong:
            raise ValueError(
                f"{file} has no {wrong[0]} of FID's Inception ({len(wrong)} tensors are missing or of another shape); "
                f"give {' or '.join(WEIGHTS)}"
            )
        model.load_state_dict({name: stored[name] for name in wanted}, strict=False)
        return model

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        x = (resize_as_tensorflow(images.permute(0, 3, 1, 2).float(), 299) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = F.max_pool2d(x, 3, stride=2)
        for name in self.mixed:
            x = self.get_submodule(name)(x)
        return x.mean(dim=(2, 3))


def find_weights(path: str | None) -> Path:
    """File with the weights; raises ValueError where there is none."""
    if path is not None:
        if not Path(path).is_file():
            raise ValueError(f"Inception weights {path} are not a file; give {' or '.join(WEIGHTS)}")
        return Path(path)
    cache = Path(torch.hub.get_dir(), "checkpoints")
    found = [cache / name for name in WEIGHTS if (cache / name).is_file()]
    if not found:
        raise ValueError(f"no Inception weights: {cache} has neither {' nor '.join(WEIGHTS)}; give --inception FILE")
    return found[0]


def resize_as_tensorflow(images: Tensor, side: int) -> Tensor:
    """Bilinear, (B, 3, H, W) -> (B, 3, side, side), as TensorFlow 1 did it: corners, not centres, of pixels meet."""
    for dim in (3, 2):
        length = images.shape[dim]
        place = torch.arange(side, dtype=torch.float32, device=images.device) * (length / side)
        before = place.long()
        shape = [side if d == dim else 1 for d in range(4)]
        low, high = (images.index_select(dim, i) for i in (before, (before + 1).clamp(max=length - 1)))
        images = low + (high - low) * (place - before).view(shape)
    return images


def feature_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of `features` (N, D), in float64; raises ValueError for fewer than two."""
    if len(features) < 2:
        raise ValueError(f"{len(features)} pictures have no covariance; give at least 2 (FID wants 10,000)")
    features = features.cpu().double()  # MPS has no float64
    return features.mean(dim=0), torch.cov(features.T)
