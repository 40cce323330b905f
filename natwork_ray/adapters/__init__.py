"""Real systems and files behind the ports, one module each."""
