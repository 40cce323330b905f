"""Microservice profiling: twelve metrics, windows, two-stage 1D-CNN detection (D3.3 section 6, Annex A)."""
