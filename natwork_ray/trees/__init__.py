"""LightGBM trees as text that is checked before it is trusted; below every capability that uses them."""
