"""A grid on a Ray cluster of two machines, both of them this one: the records of this very process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from test_grid import MODEL, write

from overheard.audit.grid import Grid, read_grid
from overheard.audit.grid_run import finish, opened
from overheard.audit.records import AuditRecord, load_records, timeless
from overheard.audit.workers import Workers, carry_out
from overheard.errors import InputError
from overheard.federation.quiet import ask_nothing


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The head of a cluster whose two nodes have room for one worker each."""
    ask_nothing()
    pytest.importorskip("ray", reason="Ray is not installed")
    from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        assert cluster.address is not None
        yield cluster.address
    finally:
        cluster.shutdown()


def done(grid: Grid, out: Path, workers: Workers) -> list[AuditRecord]:
    with opened(grid, out, workers) as folder:
        list(finish(folder, workers))
    return timeless(load_records(out))


def test_two_nodes_bring_the_records_of_one_process(
    address: str, noises: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    defences = ["none", "clip:norm=1"]
    grid = read_grid(
        write(tmp_path / "grid.toml", corpus=str(noises), models=[MODEL], attacks=["span"], limit=2, defences=defences)
    )
    far = done(grid, tmp_path / "far", Workers(2, backend="ray", address=address))

    request.getfixturevalue("here")
    assert far == done(grid, tmp_path / "here", Workers())
    assert sum(record.recovered for record in far) == 4


def test_a_cluster_that_does_not_answer_is_refused() -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    workers = Workers(2, backend="ray", address="127.0.0.1:1")
    with pytest.raises(InputError, match=r"no Ray cluster at 127\.0\.0\.1:1 "):
        list(carry_out([], workers, Path()))
