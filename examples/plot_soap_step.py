"""
Shampoo and SOAP in a few lines
===============================

Second-order optimisers keep two covariances of every weight matrix's gradient, of its rows and of
its columns. Shampoo (Gupta et al., ICML 2018) multiplies the gradient by their inverse fourth
roots; SOAP (Vyas et al., arXiv 2409.11321) runs Adam in the basis of their eigenvectors. Both
need powers or eigenvectors of many small matrices at every step: :func:`fastwhiten.matrix_power`
and :func:`fastwhiten.symmetric_eigh` take those of all layers in one call.

The problem is small and ill-conditioned: a network of four layers removes noise from images of
digits, whose pixels are strongly correlated.
"""

import math

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

import fastwhiten

torch.set_num_threads(1)  # the matrices are tiny: more threads would wait for each other

# %%
# The problem
# -----------

WIDTH, LAYERS = 64, 4
clean = torch.from_numpy(load_digits().data).float() / 16  # [1797, 64]
clean = clean - clean.mean(0)
torch.manual_seed(0)
clean = clean / clean.std()
first_weights = torch.randn(LAYERS, WIDTH, WIDTH) / WIDTH**0.5  # [L, 64, 64]


def with_noise(images):
    """Return noisy images."""
    return images + 0.3 * torch.randn_like(images)


def loss_of(weights, images, noisy):
    """Return the mean squared error of ``weights`` ``[L, 64, 64]``."""
    x = noisy
    for weight in weights[:-1]:
        x = torch.tanh(x @ weight)
    return (x @ weights[-1] - images).square().mean()


noisy = with_noise(clean)
eigenvalues = torch.linalg.eigvalsh(noisy.T @ noisy)
print(f"condition number of the inputs' covariance: {eigenvalues[-1] / eigenvalues[0]:.0f}")


# %%
# Four optimisers
# ---------------
# Each is a function from the gradient ``[L, 64, 64]`` to a step, with momentum; the learning rate
# comes after it. Statistics of rows and columns lie in one tensor ``[2, L, 64, 64]``.

DECAY = 0.95


def two_sides(gradient):
    """Return ``G G^T`` and ``G^T G``, ``[2, L, 64, 64]``."""
    return torch.stack([gradient @ gradient.mT, gradient.mT @ gradient])


class Average:
    """A running average that starts without a bias."""

    def __init__(self, decay):
        """Start with nothing."""
        self.decay, self.weight, self.value = decay, 0.0, 0.0

    def __call__(self, x):
        """Take in one more value and return the average."""
        self.weight = self.decay * self.weight + 1 - self.decay
        self.value = self.decay * self.value + (1 - self.decay) * x
        return self.value / self.weight


class SGD:
    """Gradient descent with momentum."""

    def __init__(self):
        """Start without momentum."""
        self.momentum = Average(0.9)

    def __call__(self, gradient):
        """Return the step."""
        return self.momentum(gradient)


class Adam(SGD):
    """Every entry is divided by the root of its mean square."""

    def __init__(self):
        """Start with no second moment."""
        super().__init__()
        self.square = Average(DECAY)

    def __call__(self, gradient):
        """Return the step."""
        return self.momentum(gradient) / (self.square(gradient.square()).sqrt() + 1e-10)


class Shampoo(SGD):
    """``L^-1/4 G R^-1/4``, of the size of an Adam step."""

    def __init__(self):
        """Start with no statistics."""
        super().__init__()
        self.sides = Average(DECAY)

    def __call__(self, gradient):
        """Return the step."""
        sides = self.sides(two_sides(gradient))  # [2, L, 64, 64]
        scale = sides.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
        left, right = fastwhiten.matrix_power(sides / scale, -1 / 4, eps=1e-6)
        step = left @ self.momentum(gradient) @ right
        return step / step.square().mean((1, 2), keepdim=True).sqrt()


class SOAP(Adam):
    """Adam in the basis of the eigenvectors before the step; each is found from the last one.

    The first gradient is diagonal in its own basis: it makes the basis, and no step.
    """

    def __init__(self):
        """Start with no basis."""
        super().__init__()
        self.sides, self.basis, self.seen = Average(DECAY), None, []

    def __call__(self, gradient):
        """Return the step."""
        step = torch.zeros_like(gradient)
        if self.basis is not None:
            left, right = self.basis
            square = self.square((left.mT @ gradient @ right).square())
            rotated = left.mT @ self.momentum(gradient) @ right
            step = left @ (rotated / (square.sqrt() + 1e-10)) @ right.mT
        self.seen.append(self.sides(two_sides(gradient)))  # [2, L, 64, 64]
        self.basis = fastwhiten.symmetric_eigh(self.seen[-1], start=self.basis)[1]
        return step


# %%
# The fourth root is one: its fourth power times the matrix is the identity.

covariance = noisy.T @ noisy / len(noisy)
root = fastwhiten.matrix_power(covariance, -1 / 4)
assert torch.allclose(torch.linalg.matrix_power(root, 4) @ covariance, torch.eye(WIDTH), atol=1e-2)

# %%
# Who gets how far
# ----------------
# Every optimiser has the best of its learning rates, which rise for ten steps and decay to zero.


def optimise(optimizer, rate, steps=150):
    """Return the loss of all images before every step and after the last."""
    torch.manual_seed(1)
    weights, losses = first_weights.clone(), []
    for step in range(steps):
        losses.append(loss_of(weights, clean, noisy).item())
        batch = clean[torch.randperm(len(clean))[:256]]
        weights.requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss_of(weights, batch, with_noise(batch)), weights)
        with torch.no_grad():
            schedule = min(1, (step + 1) / 10, 1.1 * (1 - step / steps))
            weights = weights.detach() - rate * schedule * optimizer(gradient)
    return [*losses, loss_of(weights, clean, noisy).item()]


RATES = {SGD: (3, 10, 30), Adam: (0.01, 0.03, 0.1)}
RATES |= {Shampoo: (0.001, 0.003, 0.01), SOAP: (0.01, 0.03, 0.1)}
curves, best = {}, {}
for kind, rates in RATES.items():
    runs = {}
    for rate in rates:
        optimizer = kind()
        losses = optimise(optimizer, rate)
        if math.isfinite(losses[-1]):
            runs[rate] = losses, optimizer
    rate = min(runs, key=lambda rate: runs[rate][0][-1])
    curves[kind.__name__], best[kind.__name__] = runs[rate]
    ends = ", ".join(f"{rate:g}: {losses[-1]:.4f}" for rate, (losses, _) in runs.items())
    print(f"{kind.__name__:8} ends at {curves[kind.__name__][-1]:.4f} (by learning rate {ends})")
for name in ("Shampoo", "SOAP"):
    there = [step for step, loss in enumerate(curves[name]) if loss <= curves["Adam"][-1]]
    when = f"after {there[0]} steps" if there else "never"
    print(f"{name} is where Adam ends, after {len(curves['Adam']) - 1} steps, {when}")
assert curves["SOAP"][-1] < curves["Adam"][-1] < curves["SGD"][-1]

# %%
# What a warm start saves
# -----------------------
# The statistics change little from step to step, so their eigenvectors before a step nearly
# diagonalise them after it. An iterative eigensolver can begin there: Jacobi's method rotates
# pairs of rows and columns until nothing is left off the diagonal, and takes a number of sweeps
# over all pairs that depends on how much there was. ``start`` serves fastwhiten's CUDA kernels,
# which use it; :func:`fastwhiten.symmetric_eigh_sweeps` counts. The CPU's solver is direct and
# ignores ``start``.

sides = best["SOAP"].seen  # of every step, [2, L, 64, 64]
print("sweeps by this machine's solver, -1 where it takes no start:", end=" ")
print(fastwhiten.symmetric_eigh_sweeps(sides[-1]).unique().tolist())


def off_diagonal(matrices):
    """Return the share of the Frobenius norm that is off the diagonal, ``[...]``."""
    diagonal = matrices.diagonal(dim1=-2, dim2=-1).square().sum(-1)
    return (1 - diagonal / matrices.square().sum((-2, -1))).clamp(min=0).sqrt()


def rounds():
    """Return disjoint pairs that meet each other once: 63 rounds of 32."""
    players = list(range(WIDTH))
    for _ in range(WIDTH - 1):
        yield torch.tensor(players[: WIDTH // 2]), torch.tensor(players[: WIDTH // 2 - 1 : -1])
        players = [players[0], players[-1], *players[1:-1]]


def sweeps(matrices, start, tolerance=1e-7, most=20):
    """Count Jacobi's sweeps, ``[...]``, in plain PyTorch and float64: the number, not the time."""
    a = start.double().mT @ matrices.double() @ start.double()
    count = torch.zeros(a.shape[:-2], dtype=torch.int)
    for _ in range(most):
        open_ones = off_diagonal(a) > tolerance
        if not open_ones.any():
            break
        count += open_ones
        for p, q in rounds():
            angle = 0.5 * torch.atan2(2 * a[..., p, q], a[..., q, q] - a[..., p, p])
            # The smaller of the two rotations that make the entry zero.
            angle -= torch.pi / 2 * (angle / (torch.pi / 2)).round()
            rotation = torch.eye(WIDTH, dtype=a.dtype).expand(a.shape).clone()
            rotation[..., p, p] = rotation[..., q, q] = angle.cos()
            rotation[..., p, q], rotation[..., q, p] = angle.sin(), -angle.sin()
            a = rotation.mT @ a @ rotation
    return count


steps = range(1, len(sides), 18)
counted, left = {"from nothing": [], "from the last step": []}, []
for step in steps:
    now, before = sides[step], fastwhiten.symmetric_eigh(sides[step - 1])[1]
    counted["from nothing"].append(sweeps(now, torch.eye(WIDTH).expand_as(now)).float().mean())
    counted["from the last step"].append(sweeps(now, before).float().mean())
    left.append(off_diagonal(before.mT @ now @ before).median())
mean = {name: torch.stack(of).mean().item() for name, of in counted.items()}
print(", ".join(f"sweeps {name}: {of:.1f}" for name, of in mean.items()))
print(f"off the diagonal: {left[0]:.1e} after the first step, {left[-1]:.1e} after the last")
assert mean["from the last step"] < mean["from nothing"]

figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for (name, losses), colour in zip(
    curves.items(), ("#666666", "#0072B2", "#009E73", "#D55E00"), strict=True
):
    axes[0].plot(losses, color=colour, label=name)
axes[0].set(xlabel="step", ylabel="mean squared error", yscale="log", title="removing noise")
axes[0].legend(frameon=False)
for (name, of), colour in zip(counted.items(), ("#0072B2", "#D55E00"), strict=True):
    axes[1].plot(steps, of, "o-", color=colour, label=name)
axes[1].set(xlabel="step", ylabel="sweeps", ylim=(0, None), title="Jacobi's method")
axes[1].legend(frameon=False)
plt.show()
