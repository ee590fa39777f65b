"""Settings, recipes and errors. Knows nobody: every other room may import it, it imports none of them."""
