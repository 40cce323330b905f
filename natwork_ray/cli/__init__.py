"""`natwork`, the command line. The one place here that may import agents and Serve apps."""

import os

# Before numpy and torch are imported anywhere: more threads than cores cost small networks a factor of ten.
os.environ.setdefault("OMP_NUM_THREADS", "1")
