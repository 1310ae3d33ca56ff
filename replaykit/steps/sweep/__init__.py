"""How much replay is enough: several shares at the same compute, and what may be said of them."""
