import subprocess
import sys

import pytest

from embed.process.allocator import keep_freed_memory

COUNT_FAULTS = """
import resource, sys
from embed.process.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    b"x" * int(sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    argv = [sys.executable, "-c", COUNT_FAULTS, how, str(64 << 20)]
    return int(subprocess.run(argv, capture_output=True, check=True).stdout)


@pytest.mark.skipif(not keep_freed_memory(), reason="the C library is not glibc")
def test_blocks_that_were_freed_are_used_again_without_page_faults() -> None:
    assert page_faults("keep") < page_faults("leave") / 10


COUNT_PAGES = """
from embed.process.allocator import keep_freed_memory, release_freed_memory
def pages():
    return int(open("/proc/self/statm").read().split()[1])
keep_freed_memory()
before = pages()
b"x" * (64 << 20)
kept = pages()
release_freed_memory()
print(before, kept, pages())
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="the C library is not glibc")
def test_what_is_kept_can_be_handed_back() -> None:
    done = subprocess.run([sys.executable, "-c", COUNT_PAGES], capture_output=True, check=True)
    before, kept, released = map(int, done.stdout.split())
    assert kept - before > 10_000 and released - before < 2_000  # pages of 4 KiB, of 16,384
