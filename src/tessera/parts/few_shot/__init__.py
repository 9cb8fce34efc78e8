"""Parts of socket `few_shot`: a frozen dual encoder and a few labelled images -> a classifier."""
