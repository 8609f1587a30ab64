"""Generated stubs of proto/wavemesh/v1; ``make proto`` writes them."""
