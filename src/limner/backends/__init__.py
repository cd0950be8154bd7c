"""Backends, which run networks: in PyTorch or OpenVINO, with offloading and tuning."""
