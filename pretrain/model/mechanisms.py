"""The two mechanisms that the paper compares MoCo with (He et al. 2020, Sec. 3.2 and Figure 2 a, b)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from pretrain.common import distributed, rng
from pretrain.model.contrast import Contrast, KeyInputs, Keys
from pretrain.model.moco import on_device, shuffle, unshuffle


class EndToEnd(Contrast):
    """Two encoders, both trained by back-propagation; the negatives are the other keys of the total batch.

    The encoders start with equal weights, as in MoCo, but are trained independently.

    Args:
        make_encoder: makes an encoder, (N, 3, H, W) -> (N, dim), head included.
        temperature: divides the cosines (tau).
    """

    def __init__(self, make_encoder: Callable[[], nn.Module], *, temperature: float = 0.2) -> None:
        super().__init__(make_encoder, temperature=temperature)
        self.encoder_k = make_encoder()
        self.encoder_k.load_state_dict(self.encoder_q.state_dict())

    def keys(self, inputs: KeyInputs) -> Keys:
        """Return positives and negatives from the key encoder, with their gradient."""
        images = inputs.pixels(shuffle(inputs.views, inputs.order))
        encoded = F.normalize(self.encoder_k(images).float(), dim=1)
        positive = unshuffle(encoded.detach(), inputs.order).requires_grad_()
        own = torch.eye(len(positive), dtype=torch.bool, device=positive.device)
        return Keys(positive, positive.T, own, encoded)


class MemoryBank(Contrast):
    """One encoder, and a bank that holds one vector per image of the data set (Wu et al. 2018).

    A query's positive is the bank's vector of the same image; the negatives of a step are drawn from the bank.
    Only the query view is encoded. The loss is InfoNCE here too (footnote 2 of He et al.), not Wu et al.'s NCE.

    Args:
        make_encoder: makes an encoder, (N, 3, H, W) -> (N, dim), head included.
        images: number of images in the data set.
        dim: size of a vector.
        negatives: number drawn in each step, shared by all queries (K).
        momentum: of a vector when its image is seen: v <- normalise(momentum * v + (1 - momentum) * q).
        temperature: divides the cosines (tau).
        seed: of the draws.
    """

    memory_bank: torch.Tensor

    def __init__(
        self,
        make_encoder: Callable[[], nn.Module],
        *,
        images: int,
        dim: int = 128,
        negatives: int = 65536,
        momentum: float = 0.5,
        temperature: float = 0.07,
        seed: int = 0,
    ) -> None:
        super().__init__(make_encoder, temperature=temperature)
        self.negatives, self.momentum, self.seed = negatives, momentum, seed
        self.register_buffer("memory_bank", F.normalize(torch.randn(images, dim), dim=1))

    @torch.no_grad()
    def keys(self, inputs: KeyInputs) -> Keys:
        """Return positives and negatives from the bank, without gradient; the key views are not used."""
        assert inputs.images is not None, "a memory bank needs the indices of the images"
        total = distributed.all_gather_interleaved(inputs.images)
        drawn = on_device(self.draw(inputs.iteration), total.device)
        return Keys(self.memory_bank[total], self.memory_bank[drawn].T, total[:, None] == drawn)

    def draw(self, iteration: int) -> torch.Tensor:
        """Return (K,) image indices, uniform and independent; they depend on (seed, iteration) alone."""
        random = rng.generator("bank", self.seed, iteration)
        return torch.from_numpy(random.integers(0, len(self.memory_bank), self.negatives))

    @torch.no_grad()
    def after_step(self, keys: Keys, queries: torch.Tensor, images: torch.Tensor | None) -> None:
        """Move the vectors of the total batch towards their queries.

        An image can be in a batch twice, because another image replaces an unreadable one: its last query counts.
        """
        assert images is not None, "a memory bank needs the indices of the images"
        total = distributed.all_gather_interleaved(images)
        moved = keys.positive.lerp(distributed.all_gather_interleaved(queries), 1 - self.momentum)
        places = torch.arange(len(total), device=total.device)
        last = torch.where(total[:, None] == total, places, -1).amax(1)  # (B,), each image's last place
        self.memory_bank[total] = F.normalize(moved, dim=1)[last]
