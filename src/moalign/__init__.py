"""MoAlign: motion-centric representation alignment for video diffusion models, as a workflow."""

__version__ = "0.1.0"
