"""Workload forecasts with calibrated bands, and the load ranges that follow from them (D3.3 sections 4.2 and 6.3)."""
