"""Programs as ordinary users would write them, run as they are and through fxsolve."""
