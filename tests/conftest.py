"""One thread a test process, as in CI: with more, sums are rounded in another order for other batch sizes."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for the processes that tests start
