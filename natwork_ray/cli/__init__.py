"""`natwork`, the command line. The one place here that may import agents and Serve apps."""
