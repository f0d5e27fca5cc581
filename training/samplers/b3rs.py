"""B3RS, the Block-based Relatively Balanced Batch Sampler (arXiv 2112.05958).

Its successor (arXiv 2408.17197) calls it GRBS, the Group-based one. The text of its equations is
not public; this is a reconstruction from the abstracts and public reviews, in two readings, and all
constants are options. Classes are sorted by frequency and cut into contiguous blocks; every batch
has a fixed quota of rows of every block, between the block's share of the images and equality.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from training.config.sampler import SamplerOptions, check_b3rs
from training.errors import ConfigError
from training.reproducibility import derive_seed
from training.samplers.apportion import (
    Floats,
    Ints,
    contiguous_blocks,
    largest_remainder,
    sized_blocks,
)
from training.samplers.streams import (
    BatchCount,
    ClassesTimesImages,
    DeckStream,
    ImageStream,
    Stream,
)


class B3RSStream:
    """Rows of B3RS batches.

    Block g of N_g images has the share pi_g = a_g N_g^q / sum_h a_h N_h^q of a batch, and the quota
    b_g by largest remainder, at least b_min. Inside a block:

    * reading "quotas": each row's class has probability n_k^r / sum n^r. At r = 1 that is the
      block's images in passes, without replacement (`ImageStream`); below, classes come from a
      deck that holds each exactly as often as the plan says over an epoch, and their images in
      passes of the class (`DeckStream`). q = r = 1 is stratified instance sampling; q = r = 0 with
      equal blocks is class-balanced.
    * reading "classes-images": P_g = round(b_g / K) different classes (at least 1, at most all),
      chosen with probability proportional to n_k^r, and b_g / P_g images of each
      (`ClassesTimesImages`).

    The rows of a batch are ordered by block.

    Args:
        members: Positions of the images of each class, [n_k] each; empty ones are allowed.
        rows: B, rows per batch.
        batches: Number of batches per epoch.
        seed: Seed of everything; >= 0.
        blocks: Number of blocks; in [1, number of classes with images].
        block_rule: "classes" cuts blocks of equally many classes, "images" of about equally many
            images.
        block_sizes: Number of classes of each block, from the most frequent on; null is by
            block_rule.
        block_weights: a_g of each block, > 0; null is 1.
        q: Exponent of a block's number of images; in [0, 1]: 0 makes blocks equal, 1 follows the
            data.
        r: Exponent of a class's number of images inside its block; in [0, 1].
        b_min: Smallest quota of a block; >= 0.
        reading: See above.
        images_per_class: K of the reading "classes-images"; >= 1.

    Attributes:
        blocks: The classes of each block.
        quotas: Rows of each block, [G], sum B.
        frequencies: Long-run class frequencies, float64 [K], sum 1.

    Raises:
        ConfigError: If an option is out of its range, or blocks or quotas do not fit the data or
            the batch.

    Example:
        >>> members = np.split(np.arange(100), [60, 85, 96])  # 60, 25, 11 and 4 images
        >>> stream = B3RSStream(members, 16, lambda epoch: 6, seed=0, blocks=2, q=0.5)
        >>> [classes.tolist() for classes in stream.blocks], stream.quotas.tolist()
        ([[0, 1], [2, 3]], [11, 5])
        >>> stream.positions(epoch=1).shape
        (6, 16)
    """

    def __init__(
        self,
        members: list[Ints],
        rows: int,
        batches: BatchCount,
        seed: int,
        *,
        blocks: int = 5,
        block_rule: Literal["classes", "images"] = "classes",
        block_sizes: Sequence[int] | None = None,
        block_weights: Sequence[float] | None = None,
        q: float = 0.5,
        r: float = 1.0,
        b_min: int = 1,
        reading: Literal["quotas", "classes-images"] = "quotas",
        images_per_class: int = 4,
    ) -> None:
        """Cut the blocks, round the quotas, make a stream per block."""
        options = SamplerOptions(
            blocks=blocks,
            block_rule=block_rule,
            block_sizes=None if block_sizes is None else list(block_sizes),
            block_weights=None if block_weights is None else list(block_weights),
            q=q,
            r=r,
            b_min=b_min,
            reading=reading,
            images_per_class=images_per_class,
        )
        check_b3rs(options)
        counts = np.array([len(m) for m in members], dtype=np.int64)  # [K]
        self.blocks = _blocks(counts, options)
        self.quotas = _quotas(counts, self.blocks, options, rows)
        self.frequencies: Floats = np.zeros(len(counts))
        self._streams: list[Stream] = []
        for number, (classes, quota) in enumerate(zip(self.blocks, self.quotas, strict=True)):
            if not quota:
                continue
            images = [members[k] for k in classes]
            block_seed = derive_seed(seed, number)
            stream, shares = _block_stream(images, options, int(quota), batches, block_seed)
            self._streams.append(stream)
            self.frequencies[classes] = shares * (quota / rows)

    def positions(self, epoch: int) -> Ints:
        """Return positions of the epoch's batches, [batches, B]."""
        return np.concatenate([stream.positions(epoch) for stream in self._streams], axis=1)


def _block_stream(
    images: list[Ints], options: SamplerOptions, quota: int, batches: BatchCount, seed: int
) -> tuple[Stream, Floats]:
    """Return the stream of one block and the frequencies of its classes inside the block."""
    counts = np.array([len(m) for m in images], dtype=np.float64)
    shares = counts**options.r / (counts**options.r).sum()
    if options.reading == "classes-images":
        wanted = int(quota / options.images_per_class + 0.5)
        chosen = min(max(wanted, 1), len(images))
        stream = ClassesTimesImages(images, shares, chosen, quota, batches, seed)
        return stream, stream.frequencies
    if options.r == 1:
        return ImageStream(np.concatenate(images), quota, batches, seed), shares
    return DeckStream(images, lambda epoch: shares, quota, batches, seed), shares


def _blocks(counts: Ints, options: SamplerOptions) -> list[Ints]:
    present = int((counts > 0).sum())
    if options.block_sizes is not None:
        if sum(options.block_sizes) != present:
            raise ConfigError(
                f"sampler_options.block_sizes: expected numbers that add up to the {present} "
                f"classes of the training data, got {options.block_sizes}, which add up to "
                f"{sum(options.block_sizes)}; change a size."
            )
        return sized_blocks(counts, options.block_sizes)
    if options.blocks > present:
        raise ConfigError(
            f"sampler_options.blocks: expected at most the {present} classes of the training data, "
            f"got {options.blocks}; use fewer blocks."
        )
    return contiguous_blocks(counts, options.blocks, options.block_rule)


def _quotas(counts: Ints, blocks: list[Ints], options: SamplerOptions, batch_size: int) -> Ints:
    if len(blocks) * options.b_min > batch_size:
        raise ConfigError(
            f"sampler_options.b_min: expected at most batch_size / blocks = "
            f"{batch_size // len(blocks)} rows, got {options.b_min} for {len(blocks)} blocks and "
            f"batches of {batch_size}; use a larger batch, fewer blocks or a smaller b_min."
        )
    weights = np.array(options.block_weights or [1.0] * len(blocks))  # [G]
    images = np.array([counts[classes].sum() for classes in blocks], dtype=np.float64)  # [G]
    return largest_remainder(batch_size, weights * images**options.q, minimum=options.b_min)
