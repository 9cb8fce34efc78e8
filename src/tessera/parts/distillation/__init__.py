"""Parts of socket `distillation`: they train a student on what a teacher or a program gives."""
