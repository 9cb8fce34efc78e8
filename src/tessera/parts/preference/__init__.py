"""Parts of socket `preference`: pairs of preferred and rejected answers and a frozen reference -> a loss."""
