"""What a run needs before it runs: bytes of a device, executables, FLOPs, seconds."""
