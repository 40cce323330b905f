"""Live migration (LiMi, D3.3 section 2.1): how long each of the four methods takes and what it costs users."""
