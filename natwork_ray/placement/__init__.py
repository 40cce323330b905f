"""From forecasts to advice for the scheduler: scale, migrate or throttle (D3.3 section 4.2)."""
