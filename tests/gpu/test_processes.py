"""Statistics over two processes on the device: gloo on one GPU, NCCL where there are two."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastwhiten import ChannelWhitening
from tests.gpu.device import DEVICE
from tests.helpers import spectra

SIZES = (20, 13)  # rows of the two processes
NCCL = pytest.param(
    "nccl",
    marks=[
        pytest.mark.cuda_only,
        pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
    ],
)


def network(kernels: str) -> nn.Sequential:
    torch.manual_seed(0)
    options = {"affine": True, "groups": 2, "backend": kernels}
    return nn.Sequential(nn.Linear(5, 8), ChannelWhitening(8, **options), nn.Linear(8, 3)).double()


def losses(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).tanh().square().sum()


def train(rank: int, collective: str, kernels: str, folder: str) -> None:
    """Three steps of this process's rows with DistributedDataParallel; its state into a file."""
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if collective == "nccl" else DEVICE
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(
        collective, init_method=f"file://{folder}/store", world_size=len(SIZES), rank=rank
    )
    model = ChannelWhitening.convert_sync(network(kernels)).to(device)
    parallel = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for seed in range(3):
        rows = spectra.random(sum(SIZES), 5, seed).split(SIZES)[rank].to(device)
        optimizer.zero_grad()
        # The reducer takes the mean over processes, one process's loss is the sum.
        (len(SIZES) * losses(parallel, rows)).backward()
        optimizer.step()
    state = {name: t.cpu() for name, t in model.state_dict().items()}
    torch.save(state, Path(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("collective", ["gloo", NCCL])
def test_two_processes_train_as_one(collective: str, kernels: str, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(train, args=(collective, kernels, str(tmp_path)), nprocs=len(SIZES))
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    model = network(kernels).to(DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for seed in range(3):
        optimizer.zero_grad()
        losses(model, spectra.random(sum(SIZES), 5, seed).to(DEVICE)).backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(states[0][name], states[1][name]), name
        torch.testing.assert_close(states[0][name], value.cpu(), rtol=1e-9, atol=1e-10, msg=name)
