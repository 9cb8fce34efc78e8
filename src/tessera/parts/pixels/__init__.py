"""Parts of socket `pixels`: an image -> the views of it that encoders or models are shown."""
