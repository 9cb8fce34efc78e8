"""Parts of socket `video`: the frames of a clip -> which of their visual tokens the language model gets."""
