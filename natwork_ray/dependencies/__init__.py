"""Which services call which, and which of those in trouble is the cause (D3.3 section 6.3, announced next steps)."""
