"""Frozen value types shared by two or more packages, one module per noun. No I/O, no numpy beyond arrays."""
