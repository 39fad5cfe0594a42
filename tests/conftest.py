"""Files whose tests take minutes are begun first: the last ones then end on all workers at once."""

LONG = (
    "tests/train/test_parallel.py",
    "tests/test_uq_benchmarks.py",
    "tests/train/test_shards.py",
    "tests/active/test_loop.py",
    "tests/test_accuracy_benchmark.py",
    "tests/lammps/test_memory.py",
    "tests/test_docs.py",
    "tests/test_gpu_benchmark.py",
    "tests/active/test_label.py",
    "tests/test_wheel.py",
    "tests/lammps/torture/",
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))
