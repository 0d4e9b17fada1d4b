"""What is learned from, and never trained in stage 2: S = V(x0), M = M_psi(S), and RAFT's flow O."""


def freeze(module):
    """Evaluation mode, and no weight asks for a gradient. Returns the module."""
    return module.eval().requires_grad_(False)
