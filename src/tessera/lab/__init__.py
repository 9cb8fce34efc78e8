"""Claims that run, and the evidence that they leave."""
