"""natwork-ray: intent-based, adaptive security for 6G services, after NATWORK deliverable D3.3.

This package is the whole of the method and never imports Ray. `agents` and `serve_apps` give it processes
and HTTP; `natwork_ray.cli` gives it a command line. Layers and import rules: docs/architecture.md.
"""

__version__ = "0.1.0"
