"""B3RS, the Block-based Relatively Balanced Batch Sampler (arXiv 2112.05958).

Its successor (arXiv 2408.17197) calls it GRBS, the Group-based one. The text of its equations is
not public; this is a reconstruction from the abstracts and public reviews, in two readings, and all
constants are options. Classes are sorted by frequency and cut into contiguous blocks; every batch
has a fixed quota of rows of every block, between the block's share of the images and equality.
"""

from __future__ import annotations

import numpy as np

from training.config.sampler import SamplerOptions
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
        options: See `SamplerOptions`.
        batch_size: B, rows per batch.
        batches: Number of batches per epoch.
        seed: Seed of everything.

    Attributes:
        blocks: The classes of each block.
        quotas: Rows of each block, [G], sum B.
        frequencies: Long-run class frequencies, float64 [K], sum 1.

    Raises:
        ConfigError: If blocks or quotas do not fit the data or the batch.
    """

    def __init__(
        self,
        members: list[Ints],
        options: SamplerOptions,
        batch_size: int,
        batches: BatchCount,
        seed: int,
    ) -> None:
        """Cut the blocks, round the quotas, make a stream per block."""
        counts = np.array([len(m) for m in members], dtype=np.int64)  # [K]
        self.blocks = _blocks(counts, options)
        self.quotas = _quotas(counts, self.blocks, options, batch_size)
        self.frequencies: Floats = np.zeros(len(counts))
        self._streams: list[Stream] = []
        for number, (classes, quota) in enumerate(zip(self.blocks, self.quotas, strict=True)):
            if not quota:
                continue
            images = [members[k] for k in classes]
            block_seed = derive_seed(seed, number)
            stream, shares = _block_stream(images, options, int(quota), batches, block_seed)
            self._streams.append(stream)
            self.frequencies[classes] = shares * (quota / batch_size)

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
