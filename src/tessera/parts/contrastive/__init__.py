"""Parts of socket `contrastive`: tokens of images and texts -> their similarity, and the loss."""
