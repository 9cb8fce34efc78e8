"""Vision-language models with parts plugged in, and generation that reads images once for many questions."""
