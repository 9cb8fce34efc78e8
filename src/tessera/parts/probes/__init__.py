"""Parts of socket `probes`: a model -> numbers about its inside."""
