"""What claims measure with: one instrument a file. A part's evidence depends on those that its file names."""
