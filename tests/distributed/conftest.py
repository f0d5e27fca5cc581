"""The processes of the tests of synchronised statistics: three, started once."""

from collections.abc import Iterator

import pytest

from tests.distributed.processes import Processes


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """Three processes; cases with two of them use the group of ranks 0 and 1."""
    pool = Processes(3, tmp_path_factory.mktemp("processes"))
    yield pool
    pool.close()
