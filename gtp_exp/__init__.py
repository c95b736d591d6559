"""gtp-exp: select instruction data by Gradient Trajectory Pursuit, fine-tune, evaluate, rank."""

__version__ = "0.1.0"
