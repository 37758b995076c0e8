"""fxsolve: makes sequential PyTorch programs parallel without changing what they compute."""
