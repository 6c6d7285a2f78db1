"""bayesws: how much of its weights may each layer share? The evidence decides."""
