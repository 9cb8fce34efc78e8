"""Models as their users meet them: generation that reads the images once and answers many questions."""
