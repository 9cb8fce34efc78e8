"""Images, records and data sets: safe decoding, the canonical record, readers, checks, batches."""
