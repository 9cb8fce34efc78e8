"""Parts of socket `engines`: annotated images -> conversations to train on."""
