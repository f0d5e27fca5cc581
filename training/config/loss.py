"""The training loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from training.config.checks import check, check_unused_options

# Every loss, and which options of LossOptions it takes notice of.
LOSS_OPTIONS: dict[str, tuple[str, ...]] = {
    "ce": (),
    "focal": ("gamma",),
    "cb": ("beta",),
    "ldam": ("max_m", "s"),
    "ldam-drw": ("max_m", "s", "beta", "drw_epoch"),
    "balanced-softmax": ("prior",),
    "logit-adjusted": ("tau", "prior"),
}
if TYPE_CHECKING:
    LossName = str
else:
    LossName = Literal[tuple(LOSS_OPTIONS)]


@dataclass
class LossOptions:
    """Options of the loss; what a loss does not have must stay unchanged.

    Attributes:
        tau: Strength of the logit adjustment; >= 0. (logit-adjusted)
        prior: Class prior that the logits are adjusted by: "dataset" is the training data's,
            "effective" that of the images which the sampler draws (under Batch Embedded Training
            the mixture of both kinds of batches), "batch" that of the batch's kind.
            (balanced-softmax, logit-adjusted)
        gamma: Focusing exponent; >= 0, 0 is cross-entropy. 2 is Lin et al.'s, 1 that of the usual
            long-tail tables. (focal)
        beta: Of the effective number of images (1 - beta^n) / (1 - beta); in [0, 1). (cb, ldam-drw)
        max_m: Margin of the rarest class, in cosine; > 0. (ldam, ldam-drw)
        s: Scale of the cosine classifier; > 0. (ldam, ldam-drw)
        drw_epoch: First epoch, from 1, with class weights; null is the first after 80 % of the
            epochs, as 161 of 200 in the original. (ldam-drw)
    """

    tau: float = 1.0
    prior: Literal["dataset", "effective", "batch"] = "dataset"
    gamma: float = 1.0
    beta: float = 0.9999
    max_m: float = 0.5
    s: float = 30.0
    drw_epoch: int | None = None


def check_loss(loss: str, options: LossOptions, epochs: int) -> None:
    """Check the ranges, and that no option is set which the loss does not have.

    Raises:
        ConfigError: Naming the option, the value that came and what is allowed.
    """
    check("loss", loss, loss in LOSS_OPTIONS, f"out of {', '.join(LOSS_OPTIONS)}")
    check("loss_options.tau", options.tau, options.tau >= 0, ">= 0")
    check("loss_options.gamma", options.gamma, options.gamma >= 0, ">= 0")
    check("loss_options.beta", options.beta, 0 <= options.beta < 1, "in [0, 1)")
    check("loss_options.max_m", options.max_m, options.max_m > 0, "> 0")
    check("loss_options.s", options.s, options.s > 0, "> 0")
    check(
        "loss_options.drw_epoch",
        options.drw_epoch,
        options.drw_epoch is None or 1 <= options.drw_epoch <= epochs,
        f"in [1, epochs={epochs}] or null",
    )
    check_unused_options("loss_options.", options, LOSS_OPTIONS, "--loss ", loss)
