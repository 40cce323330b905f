"""The audit log: hash chain, Merkle tree, signed checkpoints and offline verification (docs/audit.md)."""
