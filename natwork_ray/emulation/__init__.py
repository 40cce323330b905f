"""The emulated testbed: one seeded world with a virtual clock behind every port (docs/emulation.md).

A product of its own, not a mock: instructions act on it and change what is measured next. Everything that leaves it
says `Backend.EMULATED`.
"""
