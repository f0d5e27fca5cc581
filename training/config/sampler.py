"""Which images make up a batch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from training.config.checks import check, check_unused
from training.errors import ConfigError

SAMPLERS = ("instance", "class-balanced", "sqrt", "progressive", "b3rs")
if TYPE_CHECKING:
    SamplerName = str
else:
    SamplerName = Literal[SAMPLERS]
StatisticsBatches = Literal["all", "ordinary", "balanced"]


@dataclass
class SamplerOptions:
    """Options of the sampler; what a sampler does not have must stay unchanged.

    The papers do not publish the constants of B3RS (GRBS) and BET: these are choices of ours.

    Attributes:
        blocks: Number of contiguous blocks of classes, sorted by frequency; >= 1. (b3rs)
        block_rule: "classes" cuts blocks of equally many classes, "images" of about equally many
            images. (b3rs)
        block_sizes: Number of classes of each block, from the most frequent on; null is by
            block_rule. (b3rs)
        block_weights: Weight a_g of each block, > 0, in the order of the blocks; null is 1. (b3rs)
        q: Exponent of a block's number of images in its share of the batch; in [0, 1]: 0 makes
            blocks equal, 1 follows the data. (b3rs)
        r: Exponent of a class's number of images in its share of the block; in [0, 1]. (b3rs)
        b_min: Smallest number of rows of a block in a batch; >= 0. (b3rs)
        reading: "quotas" draws every row of a block's quota on its own; "classes-images" takes a
            few classes of each block and images_per_class images of each. (b3rs)
        images_per_class: K of reading "classes-images"; >= 1.
        bet_start_epoch: First epoch, from 1, with balanced batches. (a bet_period)
        bet_schedule: "periodic", one balanced batch after every T - 1 ordinary ones, counted over
            the run; or "random", every batch is balanced with probability 1 / T. (a bet_period)
    """

    blocks: int = 5
    block_rule: Literal["classes", "images"] = "classes"
    block_sizes: list[int] | None = None
    block_weights: list[float] | None = None
    q: float = 0.5
    r: float = 1.0
    b_min: int = 1
    reading: Literal["quotas", "classes-images"] = "quotas"
    images_per_class: int = 4
    bet_start_epoch: int = 1
    bet_schedule: Literal["periodic", "random"] = "periodic"


_BET = ("bet_start_epoch", "bet_schedule")


def check_sampler(
    sampler: str, bet_period: int | None, options: SamplerOptions, epochs: int
) -> None:
    """Check the ranges, and that no option is set which the sampler does not have.

    Raises:
        ConfigError: Naming the option, the value that came and what is allowed.
    """
    check("sampler", sampler, sampler in SAMPLERS, f"out of {', '.join(SAMPLERS)}")
    check_b3rs(options)
    check("bet_period", bet_period, bet_period is None or bet_period >= 0, ">= 0 or null")
    check(
        "sampler_options.bet_start_epoch",
        options.bet_start_epoch,
        1 <= options.bet_start_epoch <= epochs,
        f"in [1, epochs={epochs}]",
    )
    if sampler == "instance":
        where = "with --sampler instance, which has no balanced batches to embed"
        check_unused("bet_period", bet_period or None, None, where, "--sampler b3rs")
    _check_unused(sampler, bet_period, options)


def check_b3rs(options: SamplerOptions) -> None:
    """Check the ranges of the options of B3RS.

    Raises:
        ConfigError: Naming the option, the value that came and what is allowed.
    """
    for name, values in (
        ("block_rule", ("classes", "images")),
        ("reading", ("quotas", "classes-images")),
    ):
        value = getattr(options, name)
        check(f"sampler_options.{name}", value, value in values, f"out of {', '.join(values)}")
    check("sampler_options.q", options.q, 0 <= options.q <= 1, "in [0, 1]")
    check("sampler_options.r", options.r, 0 <= options.r <= 1, "in [0, 1]")
    check("sampler_options.b_min", options.b_min, options.b_min >= 0, ">= 0")
    images = options.images_per_class
    check("sampler_options.images_per_class", images, images >= 1, ">= 1")
    check("sampler_options.blocks", options.blocks, options.blocks >= 1, ">= 1")
    sizes, weights = options.block_sizes, options.block_weights
    check(
        "sampler_options.block_sizes",
        sizes,
        sizes is None or (len(sizes) > 0 and all(size >= 1 for size in sizes)),
        "null or a list of numbers >= 1",
    )
    number = options.blocks if sizes is None else len(sizes)
    check(
        "sampler_options.block_weights",
        weights,
        weights is None or (len(weights) == number and all(0 < a < float("inf") for a in weights)),
        f"null or a list of {number} numbers > 0, one per block",
    )
    if sizes is not None:
        where = "beside block_sizes, which decides the blocks"
        for name in ("blocks", "block_rule"):
            value, default = getattr(options, name), getattr(SamplerOptions, name)
            check_unused(f"sampler_options.{name}", value, default, where, "no block_sizes")


def _check_unused(sampler: str, bet_period: int | None, options: SamplerOptions) -> None:
    where = f"with --sampler {sampler} and --bet-period {_text(bet_period)}"
    for name, value in asdict(options).items():
        if name in _BET:
            used, instead = bool(bet_period), "--bet-period T with T >= 1"
        elif name == "images_per_class":
            used = sampler == "b3rs" and options.reading == "classes-images"
            instead = "--sampler b3rs --sampler_options.reading classes-images"
        else:
            # A period of 0 makes no balanced batch.
            used, instead = sampler == "b3rs" and bet_period != 0, "--sampler b3rs"
        if not used:
            default, why = getattr(SamplerOptions, name), f"{where}, where it has no effect"
            check_unused(f"sampler_options.{name}", value, default, why, instead)


def _text(period: int | None) -> str:
    """Write a value as it is typed on the command line."""
    return "null" if period is None else str(period)


def check_statistics_batches(
    statistics_batches: str, sampler: str, bet_period: int | None, options: SamplerOptions
) -> None:
    """Check that both kinds of batches exist if one of them alone shall update statistics.

    Raises:
        ConfigError: If the running statistics would never, or always, be updated.
    """
    if statistics_batches == "all":
        return
    if sampler == "instance" or bet_period is None or bet_period < 2:
        where = f"with --sampler {sampler} and --bet-period {_text(bet_period)}"
        check_unused(
            "statistics_batches",
            statistics_batches,
            "all",
            f"{where}, where all batches are of one kind",
            "--sampler b3rs --bet-period T with T >= 2",
        )
    if statistics_batches == "balanced" and options.bet_start_epoch > 1:
        raise ConfigError(
            "statistics_batches: expected 'all' or 'ordinary' with sampler_options.bet_start_epoch "
            f"{options.bet_start_epoch}, got 'balanced': no batch would update the running "
            "statistics before that epoch; set bet_start_epoch to 1."
        )


def check_statistics_layers(layers: str, batches: str, whitening: str) -> None:
    """Check that there are statistics for which the choice of batches matters.

    Raises:
        ConfigError: If an option would have no effect.
    """
    if batches == "all":
        where = "with --statistics-batches all, where every batch updates every layer"
        check_unused(
            "statistics_layers", layers, "whitening", where, "ordinary or balanced batches"
        )
    if layers == "whitening" and whitening == "none":
        where = "with --whitening none, which has no running statistics"
        instead = "--statistics-layers all for those of the backbone"
        check_unused("statistics_batches", batches, "all", where, instead)
