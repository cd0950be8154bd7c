"""The audit log as a Merkle tree: hashes, proofs, signed checkpoints, and prompts that can be erased."""
