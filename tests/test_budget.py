import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streammerge import budget
from streammerge.budget import MIB, Demand, fit, format_size, parse_size
from streammerge.errors import BudgetError, RecipeError
from streammerge.kernels.contract import BLOCK


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8G", 8 * 2**30),
        ("8GiB", 8 * 2**30),
        ("8g", 8 * 2**30),
        ("500MB", 500 * 10**6),
        ("512M", 512 * 2**20),
        ("1.5K", 1536),
        ("1T", 2**40),
        ("5GB", 5 * 10**9),
        ("123", 123),
        ("123B", 123),
        (" 2 G ", 2 * 2**30),
    ],
)
def test_sizes_are_read_as_containers_read_them(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1G", "8X", "8 GG", "1,5G", "infinity"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(RecipeError, match="is not a size"):
        parse_size(text)


def test_sizes_are_printed_in_binary_units():
    assert [format_size(n) for n in (0, 1023, 2048, 512 * MIB, 5 * 2**30)] == [
        "0 B",
        "1023 B",
        "2 KiB",
        "512 MiB",
        "5 GiB",
    ]


demands = st.builds(
    Demand,
    inputs=st.integers(1, 33 * 8),
    output=st.integers(1, 8),
    floats=st.integers(12, 4 * 34),
    worker=st.integers(0, 64 * MIB),
    tensor=st.integers(0, 64 * MIB),
)


@given(demands, st.integers(0, 200 * MIB), st.integers(1, 64), st.integers(0, 4096 * MIB))
def test_what_is_projected_never_exceeds_what_is_allowed(demand, reserved, threads, allowed):
    try:
        memory = fit(demand, allowed=allowed, reserved=reserved, threads=threads, largest=64 * BLOCK)
    except BudgetError as error:
        least = int(str(error).rsplit(" ", 1)[1].removesuffix("M")) * MIB
        assert least > allowed
        memory = fit(demand, allowed=least, reserved=reserved, threads=threads, largest=64 * BLOCK)
    assert memory.projected <= memory.allowed
    assert 1 <= memory.workers <= threads
    assert memory.chunk >= BLOCK and memory.chunk % BLOCK == 0
    assert (
        memory.least - 8 * MIB
        <= fit(demand, allowed=memory.least, reserved=reserved, threads=1, largest=64 * BLOCK).projected
    )


def test_too_small_a_budget_names_the_least_one():
    demand = Demand(inputs=8, output=2, floats=20, worker=0, tensor=0)
    with pytest.raises(BudgetError, match=r"too small.*at least \d+ MiB.*try --max-ram \d+M") as caught:
        fit(demand, allowed=10 * MIB, reserved=150 * MIB, threads=2, largest=64 * BLOCK)
    assert caught.value.exit_code == 3


def write_group(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def test_the_limits_of_control_groups_are_found_at_every_level(tmp_path):
    stat = "inactive_file 100\n"
    root = tmp_path / "fs"
    write_group(root / "a", **{"memory.max": "1000\n", "memory.current": "400\n", "memory.stat": stat})
    write_group(root / "a" / "b", **{"memory.max": "max\n", "memory.current": "1\n", "memory.stat": stat})
    membership = tmp_path / "cgroup"
    membership.write_text("0::/a/b\n")
    assert min(budget._cgroup_free(membership, root)) == 1000 - 400 + 100

    names = {"memory.limit_in_bytes": "5000", "memory.usage_in_bytes": "6000", "memory.stat": "total_inactive_file 0\n"}
    write_group(root / "memory" / "docker" / "x", **names)
    membership.write_text("5:cpu:/\n4:memory,other:/docker/x\n")
    assert min(budget._cgroup_free(membership, root)) == 0
    membership.write_text("4:memory:/elsewhere\n")
    assert min(budget._cgroup_free(membership, root)) == sys.maxsize
    assert min(budget._cgroup_free(tmp_path / "absent", root)) == sys.maxsize


def test_the_default_is_a_share_of_what_is_free():
    import psutil

    assert 0 < budget.default_allowed() <= psutil.virtual_memory().total * 0.5


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
@pytest.mark.real_peak
def test_the_peak_is_the_operating_systems():
    import resource

    before = budget.peak()
    ballast = bytearray(64 * MIB)
    ballast[::4096] = b"x" * len(ballast[::4096])
    assert budget.peak() >= before
    assert abs(budget.peak() - resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) < 4 * MIB
