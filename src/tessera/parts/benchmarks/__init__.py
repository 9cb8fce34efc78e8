"""Parts of socket `benchmarks`: a model -> scores with intervals."""
