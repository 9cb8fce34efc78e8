"""The catalogue as static pages: an index with search and filters, one page per system. They need no server and no network."""
